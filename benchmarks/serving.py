"""The served model under load: eight clients, one request in a hundred hostile.

Publishes a model, serves it with `dynammo serve` (ONNX Runtime answers), and asks without a pause.
Every honest request must be answered with 200, every hostile one refused with 4xx; whatever else
comes is counted and printed. Memory is that of the server's processes together.

    python benchmarks/serving.py                 # 10 minutes
    python benchmarks/serving.py --minutes 1 --clients 4
"""

from __future__ import annotations

import argparse
import base64
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from io import BytesIO
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
import httpx
import numpy as np
import psutil
from edge import make_model, write_pictures
from mlflow import MlflowClient

from tasks.support.mlflow.database import make_database
from tasks.support.mlflow.served_model import log_model, plain_example

SIZE = 128
JSON = {"Content-Type": "application/json"}
Outcome = tuple[bool, int, float]  # hostile, status (0: none), seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--hostile", type=float, default=0.01, help="share of the requests")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dynammo-serving-") as temporary:
        folder = Path(temporary)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        uri = publish(folder)
        pictures = [file.read_bytes() for file in sorted(write_pictures(folder / "p").glob("*.*"))]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [Path(sys.executable).with_name("dynammo"), "serve", uri, "--port", str(port)]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            wait(url, server, folder / "log")
            return measure(given, url, psutil.Process(server.pid), pictures)
        finally:
            server.terminate()
            server.wait()


def publish(folder: Path) -> str:
    """The default network with a head that was not trained, in MLflow; where it is."""
    make_database(folder / "mlflow.db")
    client = MlflowClient()
    experiment = client.create_experiment("served", artifact_location=f"file://{folder}/artifacts")
    run = client.create_run(experiment).info.run_id
    return log_model(run, make_model(folder / "model", SIZE), "served", plain_example(SIZE))["uri"]


def wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Until it answers."""
    while True:
        try:
            httpx.get(f"{url}/ping", timeout=5).raise_for_status()
            return
        except httpx.HTTPError:
            if server.poll() is not None:
                raise SystemExit(log.read_text(errors="replace")[-2000:]) from None
            time.sleep(1)


def measure(
    given: argparse.Namespace, url: str, server: psutil.Process, pictures: list[bytes]
) -> int:
    """Ask until the time is over, then print what came."""
    good, bad = [honest(picture) for picture in pictures], hostile(pictures[0])
    outcomes: list[Outcome] = []
    unexpected: Counter[str] = Counter()
    ends = time.monotonic() + 60 * given.minutes

    def client(number: int) -> None:
        chance = random.Random(number)
        with httpx.Client(timeout=120) as session:
            while time.monotonic() < ends:
                evil = chance.random() < given.hostile
                name = chance.choice(sorted(bad)) if evil else "an honest request"
                content = bad[name] if evil else chance.choice(good)
                start = time.perf_counter()
                try:
                    # Over a connection of its own: the server closes it after an error of its own.
                    post = httpx.post if evil else session.post
                    sent = post(f"{url}/invocations", content=content, headers=JSON)
                    status = sent.status_code
                except httpx.HTTPError:
                    status = 0
                outcomes.append((evil, status, time.perf_counter() - start))
                if not (400 <= status < 500 if evil else status == 200):
                    unexpected[f"{name}: {status or 'no answer'}"] += 1

    threads = [threading.Thread(target=client, args=(n,)) for n in range(given.clients)]
    for thread in threads:
        thread.start()
    sizes = []
    while any(thread.is_alive() for thread in threads):
        sizes.append(memory(server))
        time.sleep(2)
    report(outcomes, unexpected, sizes, 60 * given.minutes)
    return 1 if unexpected else 0


def report(
    outcomes: list[Outcome], unexpected: Counter[str], sizes: list[float], seconds: float
) -> None:
    """What benchmarks/measurements/reliability.md states."""
    times = sorted(1000 * spent for evil, status, spent in outcomes if not evil and status == 200)
    refused = Counter(status for evil, status, _ in outcomes if evil)
    p50, p99 = np.percentile(times, [50, 99])
    tenth = max(len(sizes) // 10, 1)
    print(f"load average {os.getloadavg()[1]:.1f} (5 minutes), {os.cpu_count()} cores")
    print(f"{len(times)} honest requests answered, {len(times) / seconds:.1f} a second")
    print(f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, longest {times[-1]:.0f} ms")
    print(f"hostile requests by status: {dict(sorted(refused.items()))}")
    for name, count in unexpected.most_common():
        print(f"unexpected: {count} x {name}")
    marks = [np.mean(sizes[i : i + tenth]) for i in (tenth, len(sizes) // 2, len(sizes) - tenth)]
    print("MB of memory after a tenth, half, all of the time:", *(f"{m:.0f}" for m in marks))
    print(f"at most {max(sizes):.0f} MB")


def memory(server: psutil.Process) -> float:
    """MB of the server and its processes."""
    total = 0
    for process in [server, *server.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue  # it has just ended
    return total / 1e6


def honest(picture: bytes) -> bytes:
    """A request with one picture."""
    text = base64.b64encode(picture).decode()
    return f'{{"dataframe_split": {{"columns": ["image"], "data": [["{text}"]]}}}}'.encode()


def hostile(picture: bytes) -> dict[str, bytes]:
    """What no client should send."""
    deep = b"[" * 200_000 + b"]" * 200_000
    return {
        "no JSON": b"hello",
        "nothing": b"",
        "cut off": honest(picture)[:-20],
        "no column": b'{"dataframe_split": {"columns": ["x"], "data": [["y"]]}}',
        "another form": b'{"pictures": []}',
        "a picture cut off": honest(picture[: len(picture) // 2]),
        "no picture": honest(b"hello" * 1000),
        "no base64": b'{"dataframe_split": {"columns": ["image"], "data": [["%%%"]]}}',
        "a number": b'{"dataframe_split": {"columns": ["image"], "data": [[3]]}}',
        "a row of pixels": b'{"inputs": [[1, 2, 3]]}',
        "a bomb": honest(bomb(60_000)),
        "a path": b'{"dataframe_split": {"columns": ["image"], "data": [["/etc/passwd"]]}}',
        "JSON 200,000 deep": b'{"dataframe_split": ' + deep + b"}",
        "a lone surrogate": b'{"dataframe_split": {"columns": ["image"], "data": [["\\ud800"]]}}',
        "not UTF-8": b'{"inputs": "\xff\xfe"}',
    }


def bomb(side: int) -> bytes:
    """A PNG of little that becomes side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    file = BytesIO(b"\x89PNG\r\n\x1a\n")
    file.seek(0, 2)
    size = side.to_bytes(4, "big")
    file.write(chunk(b"IHDR", size + size + b"\x08\x00\x00\x00\x00"))
    file.write(chunk(b"IDAT", zlib.compress(bytes(10_000_000), 9)))
    file.write(chunk(b"IEND", b""))
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())
