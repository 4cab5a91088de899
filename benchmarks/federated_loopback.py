"""A round over TLS with known sites only, and a site killed in the middle of one, on loopback.

    python benchmarks/federated_loopback.py CONFIG.json site_a site_b site_c --flower /path/to/bin

Certificates and keys are made with openssl and ssh-keygen. Printed: what each SuperNode that must
be refused says, how long the rounds took, and who was in them; the figures are in
benchmarks/measurements/federated.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


class Loopback:
    """The processes of a SuperLink and its SuperNodes, in a folder."""

    def __init__(self, folder: Path, flower: Path) -> None:
        self.folder, self.flower, self.address = folder, flower, f"127.0.0.1:{free_port()}"
        self.started: list[subprocess.Popen[bytes]] = []
        self.env = {
            **os.environ,
            "FLWR_HOME": str(folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{flower}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }

    def start(self, name: str, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A process, its output in a file."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [self.flower / program, *arguments],
                cwd=self.folder,
                env=self.env,
                stdout=log,
                stderr=log,
            )
        self.started.append(process)
        return process

    def node(self, name: str, batch: Path | None, *how: str) -> subprocess.Popen[bytes]:
        """A SuperNode."""
        config = ["--node-config", f'site="{batch}" name="{name}"'] if batch else []
        port = ["--port", str(free_port())]
        link = ["--superlink", self.address]
        return self.start(name, "flower-supernode", *link, *port, *how, *config)

    def log(self, name: str) -> str:
        """What a process has said."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait(self, name: str, text: str, seconds: float = 240) -> float:
        """Until a process says something; the seconds that it took."""
        began = time.monotonic()
        while text not in self.log(name):
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"{name} does not say {text!r}:\n{self.log(name)[-2000:]}")
            time.sleep(0.05)
        return time.monotonic() - began

    def run(self, name: str, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command, to its end."""
        done = subprocess.run(
            [self.flower / program, *arguments],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        (self.folder / f"{name}.log").write_text(done.stdout + done.stderr)
        return done

    def stop(self) -> None:
        """End what was started, children included."""
        for process in reversed(self.started):
            kill(process, signal.SIGTERM)
        for process in self.started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                kill(process, signal.SIGKILL)


def kill(process: subprocess.Popen[bytes], sign: int) -> None:
    """Send a signal to a process and all that it has started."""
    with suppress(psutil.NoSuchProcess):
        for own in [*psutil.Process(process.pid).children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                own.send_signal(sign)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port: int = own.getsockname()[1]
        return port


def make_certificates(folder: Path, names: list[str]) -> None:
    """Two authorities, the server's certificate by `ca`, and a key for each site."""

    def shell(command: str) -> None:
        subprocess.run(command, shell=True, check=True, cwd=folder, capture_output=True)

    for authority in ("ca", "other"):
        shell(
            f"openssl req -x509 -newkey rsa:3072 -noenc -days 365 -subj /CN={authority} "
            f"-keyout {authority}.key -out {authority}.crt"
        )
    shell(
        "openssl req -newkey rsa:3072 -noenc -subj /CN=server -addext "
        "subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout server.key -out server.csr && "
        "openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 "
        "-copy_extensions copy -out server.pem"
    )
    for name in names:
        shell(f"ssh-keygen -q -t ecdsa -b 384 -N '' -f {name}_key")


def main() -> None:
    """Hold the rounds and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("sites", type=Path, nargs=3)
    parser.add_argument("--flower", type=Path, required=True, help="folder of flower-superlink")
    parser.add_argument("--min-patients", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="folder for logs and rounds")
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="dynammo-loopback-"))
    folder.mkdir(parents=True, exist_ok=True)
    names = ["site_a", "site_b", "site_c"]
    make_certificates(folder, [*names, "stranger"])
    here = Loopback(folder, given.flower.absolute())
    (folder / "flower").mkdir(exist_ok=True)
    (folder / "flower" / "config.toml").write_text(
        '[superlink]\ndefault = "loopback"\n\n[superlink.loopback]\n'
        f'address = "{here.address}"\nroot-certificates = "{folder / "ca.crt"}"\n'
    )
    host, port = here.address.split(":")
    try:
        here.start(
            "link",
            "flower-superlink",
            *("--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.pem"),
            *("--ssl-keyfile", "server.key", "--enable-supernode-auth"),
            *("--disable-runtime-dependency-installation", "--host", host, "--port", port),
        )
        for _ in range(2400):
            with socket.socket() as own:
                if own.connect_ex((host, int(port))) == 0:
                    break
            time.sleep(0.1)
        trusted = ["--root-certificates", "ca.crt"]

        def keyed(name: str) -> list[str]:
            return ["--auth-supernode-private-key", f"{name}_key"]

        tries = {
            "plain": ["--insecure", "--max-retries", "1"],
            "wrong_authority": ["--root-certificates", "other.crt", *keyed("stranger")],
            "no_key": trusted,
            "unknown_key": [*trusted, *keyed("stranger")],
        }
        for name, how in tries.items():
            process = here.node(name, None, *how, *(["--max-retries", "1"] * (name != "plain")))
            here.wait(name, "The SuperNode could not")
            kill(process, signal.SIGKILL)
            said = here.log(name).partition("Exit Code: ")[2].splitlines()[:3]
            print(f"{name}: refused: {' '.join(said)}", flush=True)
        for name in names:
            done = here.run(
                f"register_{name}", "flwr", "supernode", "register", f"{name}_key.pub", "loopback"
            )
            print(f"register {name}: exit {done.returncode}", flush=True)
        nodes = {
            name: here.node(name, batch.absolute(), *trusted, *keyed(name))
            for name, batch in zip(names, given.sites, strict=True)
        }
        for number in (1, 2):
            began = time.monotonic()
            out = folder / f"round{number}"
            asked = (
                f'config="{given.config.absolute()}" out="{out}" sites=3 '
                f"min-patients={given.min_patients} timeout=300.0"
            )
            here.start(
                f"run{number}",
                "flwr",
                *("run", str(ROOT / "scripts/flower"), "loopback"),
                *("--stream", "-c", asked),
            )
            if number == 1:
                here.wait("site_c", "Receiving: train message", 900)
                kill(nodes["site_c"], signal.SIGKILL)
                killed = time.monotonic()
                print(f"site_c killed after {killed - began:.0f} s", flush=True)
            while not (out / "round.json").exists():
                if time.monotonic() - began > 900:
                    raise TimeoutError(here.log(f"run{number}")[-3000:])
                time.sleep(0.2)
            document = json.loads((out / "round.json").read_text())
            print(
                f"round {number}: {time.monotonic() - began:.0f} s; in it "
                f"{[own['name'] for own in document['sites']]}; out {document['left_out']}; "
                f"not judged {document['silent']}",
                flush=True,
            )
            if number == 1:
                print(f"{time.monotonic() - killed:.0f} s after the site was killed", flush=True)
                nodes["site_c"] = here.node(
                    "site_c", given.sites[2].absolute(), *trusted, *keyed("site_c")
                )
    finally:
        here.stop()


if __name__ == "__main__":
    main()
