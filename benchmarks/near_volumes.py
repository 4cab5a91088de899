"""How alike volumes are by their hashes (`dynammo.data.near`): others, and altered copies.

The table of benchmarks/measurements/data.md. No set of volumes is at hand, so they are made of real
pictures: twelve of one class, from train or from test. Altered are the test volumes.

    python benchmarks/near_volumes.py data/blood8 data/skin8 data/path9

A FOLDER has manifest.csv.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from PIL import Image

from dynammo.data.formats.pictures import Form, Pixels, load_image
from dynammo.data.near import Marks, mark
from dynammo.data.samples import ImageSet
from dynammo.data.sources import csv_manifest
from tests.clips import clip

SIDE, PICTURES, FORM = 96, 12, Form(64, slices=6)
COUNTS = {"train": 60, "test": 30}


def main() -> None:
    """Print a row for every folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print(f"| images | fewest bits between train and test | {' | '.join(ALTERED)} |")
    for folder in given.folders:
        source, chance = csv_manifest.load(folder.absolute()), random.Random(given.seed)
        train, test = (
            [volume(source, split, chance) for _ in range(COUNTS[split])] for split in COUNTS
        )
        known = [hashed(own) for own in train]
        fewest = min(bits(hashed(own), other) for own in test for other in known)
        most = [
            max(bits(hashed(own), hashed(alter(own))) for own in test) for alter in ALTERED.values()
        ]
        print(f"| {folder.name} | {fewest:.0f} | {' | '.join(f'{own:.0f}' for own in most)} |")


def volume(source: ImageSet, split: str, chance: random.Random) -> Pixels:
    """(PICTURES, SIDE, SIDE, 3), of one class."""
    own = source.select(split, [chance.choice(source.classes)])
    files = [source.root / chance.choice(own).file for _ in range(PICTURES)]
    return np.stack([load_image(file, SIDE) for file in files])


def hashed(volume: Pixels | Path) -> Marks:
    """Of its strip."""
    found = mark(load_image(volume, FORM), FORM.slices)
    assert found is not None
    return found


def bits(one: Marks, other: Marks) -> float:
    """That differ, of a slice in the mean."""
    return float(np.bitwise_count(one ^ other).sum()) / FORM.slices


def as_jpeg(quality: int) -> Callable[[Pixels], Pixels]:
    """Every slice encoded again."""

    def alter(volume: Pixels) -> Pixels:
        pages = []
        for own in volume:
            content = io.BytesIO()
            Image.fromarray(own).save(content, "JPEG", quality=quality)
            pages.append(np.asarray(Image.open(content)))
        return np.stack(pages)

    return alter


def resized(side: int) -> Callable[[Pixels], Pixels]:
    """Every slice at another size."""
    return lambda volume: np.stack([load_image(own, side) for own in volume])


def as_clip(volume: Pixels) -> Path:
    """H.264, at FFmpeg's quality."""
    return clip(Path(_FOLDER.name, "clip.mp4"), [*volume], "libx264")


_FOLDER = TemporaryDirectory()
ALTERED: dict[str, Callable[[Pixels], Pixels | Path]] = {
    "JPEG 90": as_jpeg(90),
    "JPEG 60": as_jpeg(60),
    "half the size": resized(SIDE // 2),
    "double the size": resized(2 * SIDE),
    "H.264": as_clip,
}

if __name__ == "__main__":
    main()
