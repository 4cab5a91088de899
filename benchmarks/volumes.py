"""What a volume's slices, and their order, are worth (`image.slices`, `backbone.pool`).

The table of benchmarks/measurements/learner.md. No set of labelled volumes is at hand, so they are
made of real pictures of two classes, X and Y: eight slices, of which all are of X, all of Y, the
first half of X, or the first half of Y. Any one slice leaves two of the four classes, and what is
in the volume, without where, cannot tell the last two apart. A learner learns the classes two at a
time.

    python benchmarks/volumes.py data/blood8 lymphocyte monocyte WORK --seed 1

FOLDER has manifest.csv. WORK is made.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path

os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from PIL import Image

import flows  # noqa: F401  (its settings must be there before Prefect is imported)
from benchmarks.learner import command, options
from dynammo.data.formats.pictures import load_image
from dynammo.data.samples import ImageSet
from dynammo.data.sources import csv_manifest
from flows.cli.show import evaluate_model

SLICES, SIDE = 8, 64
COUNTS = {"train": 40, "test": 40}  # volumes of a class
SETTINGS = (f"image.size={SIDE}", "memory.per_class=5", "tracking.register_model=false")
GATE = ("gate.min_last_recall=0", "gate.max_class_loss=1")  # each version is published
WAYS: dict[str, tuple[str, ...]] = {
    "one slice": (),
    "mean": (f"image.slices={SLICES}",),
    "thirds": (f"image.slices={SLICES}", "backbone.pool=thirds"),
}


def main() -> None:
    """Print mean class recall after both batches, for every way."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("x")
    parser.add_argument("y")
    parser.add_argument("work", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    source = csv_manifest.load(given.folder.absolute())
    given.work.mkdir(parents=True, exist_ok=True)
    os.chdir(given.work)
    os.environ |= {"DYNAMMO_HOME": "home", "PYTHONPATH": sys.path[0]}
    make(source, given.x, given.y, random.Random(given.seed))
    for number, (way, settings) in enumerate(WAYS.items()):
        name, kind = f"way{number}", "volumes" if settings else "slices"
        chosen = options([*SETTINGS, *GATE, *settings, f"seed={given.seed}"])
        command("learn", name, f"{kind}/first", *chosen)
        command("learn", name, f"{kind}/second")
        model = Path("learners", name, "model")
        right = [
            evaluate_model(model, Path(kind, batch), lambda *_: None)["accuracy"]
            for batch in ("first", "second")
        ]
        print(f"| {given.seed} | {way} | {100 * right[0]:.1f} | {100 * right[1]:.1f} |")


def make(source: ImageSet, x: str, y: str, random_: random.Random) -> None:
    """Write volumes, and beside them of each the slice in its middle."""
    kinds = {
        "first": {"x": (x, x), "y": (y, y)},
        "second": {"x then y": (x, y), "y then x": (y, x)},
    }
    for batch, classes in kinds.items():
        for name, halves in classes.items():
            for split, count in COUNTS.items():
                folders = [Path(kind, batch, split, name) for kind in ("volumes", "slices")]
                for folder in folders:
                    folder.mkdir(parents=True)
                for number in range(count):
                    chosen = [
                        random_.choice(source.select(split, [own]))
                        for own in halves
                        for _ in range(SLICES // 2)
                    ]
                    volume = [load_image(source.root / own.file, SIDE) for own in chosen]
                    np.save(folders[0] / f"{number:03}.npy", np.stack(volume))
                    middle = Image.fromarray(volume[SLICES // 2])
                    middle.save(folders[1] / f"{number:03}.png")


if __name__ == "__main__":
    main()
