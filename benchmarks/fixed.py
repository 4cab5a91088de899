"""Where the CPU seconds of a `learn` of few small pictures go.

Two batches of made pictures, each learnt in a process of its own. Of its main thread: imports, the
start of Prefect's server, and each step of the pipeline without what it imports; then its other
threads, and what is left: Prefect's records, and taking the interpreter down. Medians.

    OMP_NUM_THREADS=1 python benchmarks/fixed.py --repeats 5 --json benchmarks/reports/fixed.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from dynammo.checkpoint import to_json, write_atomically

BATCHES = {  # the colour of each class
    "first": {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)},
    "second": {"white": (200, 200, 200), "grey": (90, 90, 90)},
}
# Runs the command and writes spans of its main thread's CPU time to the file $SPANS at the end.
PROGRAM = """
import _frozen_importlib as importlib, atexit, json, os, threading, time
spent, stack = {}, []

def span(name, call):
    def measured(*args, **kwargs):
        if threading.current_thread() is not threading.main_thread():
            return call(*args, **kwargs)
        began = time.thread_time()
        stack.append(0.0)
        try:
            return call(*args, **kwargs)
        finally:
            whole = time.thread_time() - began
            own = name(*args, **kwargs) if callable(name) else name
            spent[own] = spent.get(own, 0.0) + whole - stack.pop()
            if stack:
                stack[-1] += whole
    return measured

def done():
    seconds = lambda task: sum(map(int, open(task).read().rsplit(")", 1)[1].split()[11:13])) / 100
    threads = sum(seconds(f"/proc/self/task/{n}/stat") for n in os.listdir("/proc/self/task"))
    spent["other threads"] = threads - time.thread_time()
    spent["rest of the main thread"] = threads - sum(spent.values())
    json.dump(spent, open(os.environ["SPANS"], "w"))

importlib._find_and_load = span("imports", importlib._find_and_load)
import flows
from flows.cli import app, server
server.ready = span("start of Prefect's server", server.ready)
from prefect import task_engine
engine = task_engine.SyncTaskRunEngine
engine.call_task_fn = span(lambda self, *_: "step " + self.task.name, engine.call_task_fn)
atexit.register(done)
from flows.command import app
app()
"""


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in BATCHES}
    for _ in range(given.repeats):
        with tempfile.TemporaryDirectory(prefix="dynammo-fixed-") as temporary:
            for name in BATCHES:
                found[name].append(learn(Path(temporary), name))
    table = {name: medians(own) for name, own in found.items()}
    for name, spans in table.items():
        print(f"{name} batch: CPU seconds")
        for what, seconds in spans.items():
            print(f"  {seconds:6.2f}  {what}")
    if given.json:
        write_atomically(given.json, to_json({"repeats": given.repeats, "cpu_seconds": table}))


def learn(folder: Path, batch: str) -> dict[str, float]:
    """CPU seconds of one command, by what they went into; "total" is the whole process's."""
    draw(folder / batch, BATCHES[batch])
    spans = folder / f"{batch}.json"
    environment = {
        **os.environ,
        "SPANS": str(spans),
        "PREFECT_HOME": str(folder / "prefect"),
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", PROGRAM, "learn", "toy", batch]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    own: dict[str, float] = json.loads(spans.read_text())
    return {**own, "taking it down": total - sum(own.values()), "total": total}


def draw(folder: Path, classes: dict[str, tuple[int, int, int]]) -> None:
    """Twelve pictures a class to learn and six to test, 64 pixels, noise about a colour."""
    noise = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for name, colour in classes.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.array(colour) + noise.normal(0, 40, (64, 64, 3))
                picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                picture.save(folder / split / name / f"{number}.png")


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """By what was measured, dearest first; the total last."""
    names = dict.fromkeys(name for run in runs for name in run)
    found = {name: statistics.median(run.get(name, 0.0) for run in runs) for name in names}
    total = found.pop("total")
    return {**dict(sorted(found.items(), key=lambda own: -own[1])), "total": total}


if __name__ == "__main__":
    main()
