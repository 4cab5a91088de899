"""What a small device pays for an answer: torch, ONNX Runtime, 8 bits, pruned, both and, where it
is installed, OpenVINO (pip install openvino; it computes the same graphs), side by side in one run.

Cold start (a process of `dynammo predict` from its start to its end), the latency of one image, and
images a second in batches and as a stream of files. They take turns, so that what else the machine
does hits all alike. Of models that are given with labelled images also what 8 bits cost, measured
on the test images; the others are the default network with a head that was not trained.

    python benchmarks/edge.py
    python benchmarks/edge.py --sizes 128 --threads 2 --images PHOTOS
    python benchmarks/edge.py --model skin8=MODEL=DATA --sizes 224 --json FILE

With other programs on the machine set OMP_WAIT_POLICY=PASSIVE, and believe the CPU's times.
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
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from dynammo.config import load_config
from dynammo.data.formats.pictures import Pixels
from dynammo.data.sources.folder import image_files
from dynammo.deploy.answers import Answering
from dynammo.deploy.export import Smaller, add_graph, export_model, sample_pixels
from dynammo.deploy.graph import ENGINES, load_predictor, read_graph, softmax
from dynammo.deploy.predictor import save_model
from dynammo.deploy.pruning import Whole, gmacs
from dynammo.deploy.trial import (
    Labelled,
    Trial,
    compared,
    latency,
    load_trial,
    logits_on,
    runner,
)
from dynammo.errors import ExportError
from dynammo.heads.linear import new_head
from dynammo.network.backbones import pretrained_weights
from dynammo.network.network import build_network

BATCH = 32
SMALLER = {"int8": 0.005, "pruned": 0.01, "both": 0.01}  # and what each may cost
SHARES = (0.8, 0.7, 0.6, 0.5)
FILES = {"onnx": "model.onnx", "torch": "model.safetensors"}
Row = dict[str, float]
Ways = dict[str, tuple[Path, str]]  # by name: folder and engine


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[128, 224], help="pixels a side")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--images", type=Path, help="folder of pictures; default: 36 made ones")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=MODEL=DATA",
        help="a model folder, and labelled images for --int8 and --prune; may be repeated",
    )
    parser.add_argument(
        "--shares", action="store_true", help="what pruning costs, and nothing else"
    )
    parser.add_argument("--share", type=float, default=0.6, help="that --prune leaves")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"processor": processor(), "versions": {}}
    report["versions"] = {name: version(name) for name in ("torch", "onnxruntime")}
    if find_spec("openvino"):
        report["versions"]["openvino"] = version("openvino")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = image_files(arguments.images or write_pictures(folder / "pictures"))
        one = folder / "one"
        one.mkdir()
        (one / files[0].name).symlink_to(files[0].absolute())

        def measure(name: str, model: Path, data: Path | None) -> None:
            report[name] = measured(name, model, data, folder / name, files, one, arguments)
            if arguments.json:  # what there is so far
                arguments.json.write_text(json.dumps(report, indent=2) + "\n")

        for text in arguments.model:
            name, model, data = text.split("=")
            measure(name, Path(model), Path(data))
        for size in arguments.sizes:
            measure(f"untrained-{size}", make_model(folder / f"model-{size}", size), None)


def measured(
    name: str,
    model: Path,
    data: Path | None,
    folder: Path,
    files: list[Path],
    one: Path,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """All numbers of one model; a model without data is judged by its own answers."""
    known = load_predictor(model, "onnx")
    if data is None:
        pixels = sample_pixels(known.size, 48)
        own = Labelled(
            np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)),
            known.scores(pixels).argmax(1),
            [str(index) for index in range(len(pixels))],
        )
        trial, limits = Trial(own, own), dict.fromkeys(SMALLER, 1.0)
    else:
        trial, limits = load_trial(data, known.classes, known.size), SMALLER
    cost: dict[str, Any] = {}
    if arguments.shares and data is not None:
        return {"size": known.size, "shares": curve(read_graph(model).graph, trial, known.classes)}
    ways = {engine: (model, engine) for engine in ENGINES}
    for way, limit in limits.items():
        made = folder / way
        smaller = Smaller(trial, limit, arguments.share)
        try:
            report = export_model(
                model,
                made,
                ["onnx"],
                int8=smaller if way != "pruned" else None,
                pruned=smaller if way != "int8" else None,
            )
        except ExportError as error:
            cost[way] = {"refused": str(error)}
            continue
        cost[way] = report[way]
        cost[way]["negative_flips"] = len(cost[way]["negative_flips"])
        ways[way] = made, "onnx"
    if data is not None:
        cost["shares"] = curve(read_graph(model).graph, trial, known.classes)
    print(f"\n## {name}, {known.size} px, {len(files)} files\n")
    if data is not None:
        print(json.dumps(cost, indent=1))
    tables: dict[str, dict[str, Row]] = {}
    tables["MB"] = {
        name: {"of the model": (place / FILES[engine]).stat().st_size / 1e6}
        for name, (place, engine) in ways.items()
    }
    cold = {"one image": cold_start(ways, one, arguments.repeats // 3)}
    tables["CPU s, cold start"] = {way: {"one image": cold["one image"][way]} for way in ways}
    for threads in arguments.threads:
        # A fresh process each: torch prepares its kernels for one number of threads.
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            work = process.submit(warm, ways, files, threads, arguments.repeats)
            tables[f"{threads} threads"] = work.result()
    for title, rows in tables.items():
        show(title, rows)
    return {"size": known.size, "cost": cost if data is not None else None, **tables}


def curve(graph: bytes, trial: Trial, classes: list[str]) -> list[dict[str, Any]]:
    """What pruning costs by the share of the multiplications that is left, on the test images."""
    whole, judged_on = Whole(graph, trial), trial.judged_on
    before, rows = logits_on(graph, judged_on.images), []
    for share in SHARES:
        made = whole.smaller(share)
        if made is None:
            break
        cost = compared(before, logits_on(made, judged_on.images), judged_on, classes)
        one = judged_on.images[:1]
        runs = {own: partial(runner(g, 1), one) for own, g in (("float", graph), ("pruned", made))}
        rows.append(
            {
                "share": share,
                "gmacs": gmacs(made),
                "points": 100 * cost["drop"],
                "agreement": cost["agreement"],
                "negative_flips": len(cost["negative_flips"]),
                "positive_flips": cost["positive_flips"],
                "ece": cost["ece"]["after"],
                "ms_one_image_one_thread": latency(runs, 100),
            }
        )
    return rows


def processor() -> str:
    """Its name, where Linux says it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "")


def make_model(folder: Path, size: int) -> Path:
    """The default network with a head that was not trained: what it says costs the same."""
    config = load_config()
    weights = pretrained_weights(config.backbone, seed=0)
    network = build_network(config.backbone, weights, size, config.adapter)
    save_model(
        folder,
        backbone=config.backbone,
        form=size,
        adapter=config.adapter,
        backbone_weights=weights,
        adapter_weights=network.adapter_state(),
        head=new_head(network.feature_size, 8, seed=0),
        classes=[f"class {index}" for index in range(8)],
        provenance={},
    )
    add_graph(folder)
    return folder


def write_pictures(folder: Path) -> Path:
    """36 JPEG files of 256 pixels a side."""
    folder.mkdir()
    for index, pixels in enumerate(sample_pixels(256, 36)):
        Image.fromarray(pixels).save(folder / f"{index:02}.jpg")
    return folder


def cold_start(ways: Ways, pictures: Path, repeats: int) -> dict[str, float]:
    """Median CPU seconds of whole processes, by way, with one thread each."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    command = [sys.executable, "-c", "from flows.command import app; app()", "predict"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in tqdm(range(max(repeats, 3)), desc="cold starts", leave=False):
        for way, (model, engine) in ways.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            asked = [*command, "--model", str(model), "--engine", engine, str(pictures)]
            subprocess.run(asked, env=environment, check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            seconds[way].append(spent)
    return {way: statistics.median(spent) for way, spent in seconds.items()}


class OpenVino(Answering):
    """A graph of ours, as another program computes it: to be measured beside the others."""

    def __init__(self, folder: Path, threads: int) -> None:
        import openvino

        known = load_predictor(folder, "onnx")
        self.classes, self.form, self.thresholds = known.classes, known.form, known.thresholds
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        core = openvino.Core()
        self.compiled = core.compile_model(str(folder / "model.onnx"), "CPU", options)

    def scores(self, batch: Pixels) -> NDArray[np.float64]:
        """(B, S, S, 3) uint8 RGB -> class probabilities (B, C)."""
        images = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        return softmax(self.compiled({"images": images})["logits"])


def warm(ways: Ways, files: list[Path], threads: int, repeats: int) -> dict[str, Row]:
    """Medians by way: ms of one image by the clock and of CPU, images a second."""
    import torch

    torch.set_num_threads(threads)
    predictors: dict[str, Answering] = {
        way: load_predictor(model, engine, threads=threads) for way, (model, engine) in ways.items()
    }
    if find_spec("openvino"):
        predictors |= {
            f"OpenVINO {way}": OpenVino(ways[way][0], threads) for way in ways if way != "torch"
        }
    size = next(iter(predictors.values())).size
    batch = np.concatenate([sample_pixels(size)] * 2)[:BATCH]
    single = {w: timed(lambda p=p: p.scores(batch[:1])) for w, p in predictors.items()}
    many = {w: timed(lambda p=p: p.scores(batch)) for w, p in predictors.items()}
    stream = {w: timed(lambda p=p: list(p.stream(files))) for w, p in predictors.items()}
    rows: dict[str, Row] = {way: {} for way in predictors}
    for way, (wall, cpu) in medians(single, 4 * repeats).items():
        rows[way] |= {"ms, one image": 1000 * wall, "CPU ms, one image": 1000 * cpu}
    for way, (wall, cpu) in medians(many, repeats // 3).items():
        rows[way][f"images/s, batches of {BATCH}"] = BATCH / wall
        rows[way][f"images a CPU s, batches of {BATCH}"] = BATCH / cpu
    for way, (wall, _) in medians(stream, repeats // 5).items():
        rows[way]["images/s, files"] = len(files) / wall
    return rows


def timed(work: Callable[[], object]) -> Callable[[], tuple[float, float]]:
    """The seconds that some work takes, by the clock and of CPU."""

    def run() -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - wall, time.process_time() - cpu

    return run


def medians(
    runs: dict[str, Callable[[], tuple[float, float]]], repeats: int
) -> dict[str, tuple[float, float]]:
    """Of each, taken in turns after a first round that is not counted."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(max(repeats, 3) + 1):
        for name, run in runs.items():
            spent[name].append(run())
    return {
        name: (statistics.median(w for w, _ in s[1:]), statistics.median(c for _, c in s[1:]))
        for name, s in spent.items()
    }


def show(title: str, rows: dict[str, Row]) -> None:
    """A line a quantity; each way beside how many times better than ONNX Runtime in float it is."""
    print(f"| {title} | {' | '.join(rows)} |\n|---|{'---:|' * len(rows)}")
    for name in rows["onnx"]:
        base, cells = rows["onnx"][name], []
        for row in rows.values():
            ratio = row[name] / base if name.startswith("images") else base / row[name]
            cells.append(f"{row[name]:.3g} ({ratio:.2f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(flush=True)


if __name__ == "__main__":
    main()
