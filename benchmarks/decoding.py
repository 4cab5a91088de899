"""How far predict's reading of pictures is from what the disk and the decoder allow.

Real pictures, each enlarged to a JPEG of some size with a sensor's noise on it, because what
was enlarged alone has nothing fine that a scaled decoder could lose. In turns, medians:

- disk: the files' bytes are read, from the page cache after the first round;
- decoder: bytes that are in memory become pixels of the network's size, one after another;
- floor: both, one file after another, without anything around them;
- predict: `Answering.decoded`, what `dynammo predict` reads with, threads ahead of the model;
- predict, hashed: the same with each file's SHA-256, as for the log: one read for both;
- predict, fast: with `--fast-jpeg`;
- DataLoader: torch's, with a process a core and its default batches of tensors, same function;
- whole: `Answering.stream`, against the floor and the model's own time added.

CPU seconds of this process and those it started, so that other programs hardly count.
With a model also what `--fast-jpeg` changes in its answers.

    python benchmarks/decoding.py --model MODEL --images FOLDER
    python benchmarks/decoding.py --model MODEL --images FOLDER --sides 1024 --json FILE
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from dynammo.data.formats.pictures import HashedFile, Pixels, load_image
from dynammo.data.sources.folder import image_files
from dynammo.deploy.answers import Answering, decoding_threads
from dynammo.deploy.graph import load_predictor

NOISE, QUALITY = 8, 90  # of 255 (one deviation); of the JPEG


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder with an ONNX graph")
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024, 2048], help="pixels")
    parser.add_argument("--count", type=int, default=128, help="of pictures, evenly spaced")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for all numbers")
    arguments = parser.parse_args()
    predictor = load_predictor(arguments.model, "onnx", threads=1)
    found = list(image_files(arguments.images))
    found = found[:: max(len(found) // arguments.count, 1)][: arguments.count]
    report: dict[str, Any] = {
        "size": predictor.form.size,
        "threads": decoding_threads(),
        "sides": {},
    }
    for side in arguments.sides:
        with tempfile.TemporaryDirectory() as folder:
            files = enlarged(found, side, Path(folder))
            report["sides"][side] = {
                "images": len(files),
                "MB an image": sum(file.stat().st_size for file in files) / len(files) / 1e6,
                **measured(predictor, files, arguments.repeats),
                "fast_jpeg": differences(predictor, files),
            }
        print(f"{side} px:", json.dumps(report["sides"][side], indent=1), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def enlarged(pictures: list[Path], side: int, folder: Path) -> list[Path]:
    """Each as a JPEG of `side` x 3/4 `side` pixels, with noise."""
    generator, files = np.random.default_rng(0), []
    for number, picture in enumerate(pictures):
        with Image.open(picture) as image:
            large = image.convert("RGB").resize((side, side * 3 // 4), Image.Resampling.LANCZOS)
        noisy = np.asarray(large) + generator.normal(0, NOISE, (side * 3 // 4, side, 3))
        files.append(folder / f"{number:04}.jpg")
        made = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
        made.save(files[-1], quality=QUALITY)
    return files


class Files(Dataset[torch.Tensor]):
    """What a DataLoader is given to read the same files."""

    def __init__(self, files: list[Path], size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(load_image(self.files[index], self.size))


def measured(predictor: Answering, files: list[Path], repeats: int) -> dict[str, Any]:
    """Images a CPU second of every way, and of what share of its floor predict is."""
    size = predictor.form.size
    contents = [file.read_bytes() for file in files]
    pixels = np.stack([load_image(content, size) for content in contents])
    loader = DataLoader(Files(files, size), batch_size=32, num_workers=decoding_threads())
    ways: dict[str, Callable[[], object]] = {
        "disk": lambda: [file.read_bytes() for file in files],
        "decoder": lambda: [load_image(content, size) for content in contents],
        "floor": lambda: [load_image(file, size) for file in files],
        "predict": lambda: list(predictor.decoded(files)),
        "predict, hashed": lambda: list(predictor.decoded(HashedFile(file) for file in files)),
        "predict, fast": lambda: fast(predictor, files),
        "DataLoader": lambda: list(loader),
        "model": lambda: [predictor.scores(pixels[i : i + 32]) for i in range(0, len(pixels), 32)],
        "whole": lambda: list(predictor.stream(files)),
    }
    spent: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(repeats + 1):
        for way, work in ways.items():
            wall, cpu = time.perf_counter(), cpu_seconds()
            work()
            spent[way].append((time.perf_counter() - wall, cpu_seconds() - cpu))
    medians = {
        way: (statistics.median(w for w, _ in own[1:]), statistics.median(c for _, c in own[1:]))
        for way, own in spent.items()
    }
    cpu = {way: own[1] for way, own in medians.items()}
    shares = {way: cpu["floor"] / cpu[way] for way in ("predict", "predict, hashed", "DataLoader")}
    shares["whole"] = (cpu["floor"] + cpu["model"]) / cpu["whole"]
    return {
        "images a CPU s": {way: len(files) / c for way, (_, c) in medians.items()},
        "images a s": {way: len(files) / w for way, (w, _) in medians.items()},
        "share of the floor": shares,
    }


def fast(predictor: Answering, files: list[Path]) -> list[Any]:
    """`decoded`, with big JPEGs at a part of their size."""
    predictor.fast_jpeg = True
    try:
        return list(predictor.decoded(files))
    finally:
        predictor.fast_jpeg = False


def cpu_seconds() -> float:
    """Of this process and those it has started that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(own.ru_utime + own.ru_stime for own in used)


def differences(predictor: Answering, files: list[Path]) -> dict[str, float]:
    """Of pixels and answers, between faster decoding and the usual one."""
    usual, other = (
        np.stack([load_image(file, predictor.form.size, fast_jpeg=fast) for file in files])
        for fast in (False, True)
    )
    before, after = (_scores(predictor, pixels) for pixels in (usual, other))
    moved = np.abs(before - after).max(1)
    gap = np.abs(usual.astype(int) - other)
    return {
        "pixels, mean": float(gap.mean()),
        "pixels, most": float(gap.max()),
        "same class": float((before.argmax(1) == after.argmax(1)).mean()),
        "probability, mean": float(moved.mean()),
        "probability, most": float(moved.max()),
    }


def _scores(predictor: Answering, pixels: Pixels) -> NDArray[np.float64]:
    return np.concatenate([predictor.scores(pixels[i : i + 32]) for i in range(0, len(pixels), 32)])


if __name__ == "__main__":
    main()
