"""What a small device pays for an answer: torch against ONNX Runtime, side by side in one run.

Cold start (a process of `dynammo predict` from its start to its end), the latency of one image, and
images a second in batches and as a stream of files. The engines take turns, so that what else the
machine does hits both alike.

    python benchmarks/edge.py
    python benchmarks/edge.py --sizes 128 --threads 2 --images PHOTOS
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dynammo.config import load_config
from dynammo.data.sources.folder import image_files
from dynammo.deploy.export import add_graph, sample_pixels
from dynammo.deploy.graph import ENGINES, load_predictor
from dynammo.deploy.predictor import save_model
from dynammo.heads.linear import new_head
from dynammo.network.backbones import pretrained_weights
from dynammo.network.network import build_network

BATCH = 32
FILES = {"onnx": "model.onnx", "torch": "model.safetensors"}
Row = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 224], help="pixels a side")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--images", type=Path, help="folder of pictures; default: 36 made ones")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = image_files(arguments.images or write_pictures(folder / "pictures"))
        one = folder / "one"
        one.mkdir()
        (one / files[0].name).symlink_to(files[0].absolute())
        for size in arguments.sizes:
            model = make_model(folder / f"model-{size}", size)
            weight = {e: (model / name).stat().st_size for e, name in FILES.items()}
            print(f"\n## {size} px, {len(files)} files\n")
            show("MB", {e: {"of the model": weight[e] / 1e6} for e in ENGINES})
            cold = {"one image": cold_start(model, one, arguments.repeats // 3)}
            if arguments.images is None:
                cold["36 images"] = cold_start(model, files[0].parent, arguments.repeats // 3)
            show("CPU s, cold start", turned(cold))
            for threads in arguments.threads:
                # A fresh process each: torch prepares its kernels for one number of threads.
                with ProcessPoolExecutor(1, get_context("spawn")) as process:
                    measured = process.submit(warm, model, files, threads, arguments.repeats)
                    show(f"{threads} threads", measured.result())


def make_model(folder: Path, size: int) -> Path:
    """The default network with a head that was not trained: what it says costs the same."""
    config = load_config()
    weights = pretrained_weights(config.backbone, seed=0)
    network = build_network(config.backbone, weights, size, config.adapter)
    save_model(
        folder,
        backbone=config.backbone,
        size=size,
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


def cold_start(model: Path, pictures: Path, repeats: int) -> dict[str, float]:
    """Median CPU seconds of whole processes, by engine, with one thread each."""
    seconds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    command = [sys.executable, "-c", "from flows.command import app; app()", "predict"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in tqdm(range(max(repeats, 3)), desc="cold starts", leave=False):
        for engine, spent in seconds.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            asked = [*command, "--model", str(model), "--engine", engine, str(pictures)]
            subprocess.run(asked, env=environment, check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {engine: statistics.median(spent) for engine, spent in seconds.items()}


def warm(model: Path, files: list[Path], threads: int, repeats: int) -> dict[str, Row]:
    """Medians by engine: ms of one image by the clock and of CPU, images a second."""
    import torch

    torch.set_num_threads(threads)
    predictors = {engine: load_predictor(model, engine, threads=threads) for engine in ENGINES}
    size = next(iter(predictors.values())).size
    batch = np.concatenate([sample_pixels(size)] * 2)[:BATCH]
    single = {e: timed(lambda p=p: p.scores(batch[:1])) for e, p in predictors.items()}
    many = {e: timed(lambda p=p: p.scores(batch)) for e, p in predictors.items()}
    stream = {e: timed(lambda p=p: list(p.stream(files))) for e, p in predictors.items()}
    rows: dict[str, Row] = {engine: {} for engine in ENGINES}
    for engine, (wall, cpu) in medians(single, 4 * repeats).items():
        rows[engine] |= {"ms, one image": 1000 * wall, "CPU ms, one image": 1000 * cpu}
    for engine, (wall, _) in medians(many, repeats // 3).items():
        rows[engine][f"images/s, batches of {BATCH}"] = BATCH / wall
    for engine, (wall, _) in medians(stream, repeats // 5).items():
        rows[engine]["images/s, files"] = len(files) / wall
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


def turned(table: dict[str, dict[str, float]]) -> dict[str, Row]:
    return {e: {name: row[e] for name, row in table.items()} for e in ENGINES}


def show(title: str, rows: dict[str, Row]) -> None:
    """A line a quantity: both engines and how many times better ONNX Runtime is."""
    print(f"| {title} | torch | ONNX Runtime | ratio |\n|---|---:|---:|---:|")
    for name in next(iter(rows.values())):
        torch_, onnx = rows["torch"][name], rows["onnx"][name]
        ratio = onnx / torch_ if "images/s" in name else torch_ / onnx
        print(f"| {name} | {torch_:.3g} | {onnx:.3g} | {ratio:.2f} |", flush=True)
    print(flush=True)


if __name__ == "__main__":
    main()
