r"""Data sets and a grid in which diseases that come later have few images.

Half of the classes, drawn by a seed, are learnt at once from up to 100 training images each; each
of the others then comes alone, with 10. The images to measure on are those held out of the training
images by validation_split.py. Writes, for each seed, FOLDER/unequal-SEED.csv, and the grid.

    python benchmarks/validation_split.py data/skin8/manifest.csv --output data/skin8/validation.csv
    python benchmarks/unequal.py data/skin8 --output unequal.yaml
    dynammo benchmark unequal.yaml
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path
from typing import Any

import yaml

from dynammo.data.sources.csv_manifest import read_table

FIRST, LATER = 100, 10
METHODS: dict[str, dict[str, Any]] = {
    "frozen": {"preset": "best"},
    "merged": {"preset": "best"},
    "merged-weighted": {"methods": ["merged"], "preset": "best", "merge.rule": "weighted"},
    "merged-no-images": {"methods": ["merged"], "preset": "no_images", "memory.per_class": 0},
}


def main() -> None:
    """Write the manifests and the grid."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="with validation.csv and the images")
    parser.add_argument("--output", type=Path, default=Path("unequal.yaml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 50, 42])
    given = parser.parse_args()
    data = {}
    for folder in given.folders:
        rows = [row for _, row in read_table(folder / "validation.csv")[1]]
        for seed in given.seeds:
            path = folder / f"unequal-{seed}.csv"
            data[f"{folder.name}-{seed}"] = {
                "data.path": str(path),
                "data.source": "csv",
                "scenario.tasks": write(path, rows, seed),
                "memory.size": 40,
                "seed": seed,
            }
    grid = {"base": "benchmarks/medical.yaml", "data": data, "methods": METHODS}
    given.output.write_text(
        yaml.safe_dump({**grid, "seeds": [1], "reference": "frozen"}, sort_keys=False)
    )


def write(path: Path, rows: list[dict[str, str]], seed: int) -> list[list[str]]:
    """Write a manifest of some of the rows.

    Returns:
        The classes of each task.
    """
    draw = random.Random(seed)
    order = sorted({row["class"] for row in rows})
    draw.shuffle(order)
    half = (len(order) + 1) // 2
    kept = []
    for place, name in enumerate(order):
        train = [row for row in rows if row["class"] == name and row["split"] == "train"]
        draw.shuffle(train)
        kept += train[: FIRST if place < half else LATER]
        kept += [row for row in rows if row["class"] == name and row["split"] == "test"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(kept)
    return [order[:half], *([name] for name in order[half:])]


if __name__ == "__main__":
    main()
