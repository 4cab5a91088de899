"""What age, sex and site beside the image are worth to a learner (`dynammo.clinical`).

The table of benchmarks/measurements/learner.md.

The classes arrive two at a time, in the order of the seed. After each batch the published model is
measured on the test images of all classes so far, with the columns and without: both answers are
of the same model.

    python benchmarks/clinical.py data/skin8 ISIC_2019_Training_Metadata.csv WORK --seed 1

FOLDER has manifest.csv and images named as in the metadata (ISIC 2019's: image, age_approx,
anatom_site_general, and sex, which some copies call gender). WORK is made.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import sys
from pathlib import Path

os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import flows  # noqa: F401  (its settings must be there before Prefect is imported)
from benchmarks.learner import command
from dynammo.data.samples import Sample
from dynammo.data.sources import csv_manifest
from flows.cli.show import evaluate_model

COLUMNS = {"age": "age_approx", "sex": "sex", "site": "anatom_site_general"}
SETTINGS = (
    'clinical.categories=["sex","site"]',
    'clinical.numbers=["age"]',
    "gate.min_last_recall=0",
    "gate.max_class_loss=1",  # each version is published
    "tracking.register_model=false",
)


def main() -> None:
    """Print a row for every stage, and the averages."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("metadata", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    source = csv_manifest.load(given.folder.absolute())
    known = read(given.metadata)
    given.work.mkdir(parents=True, exist_ok=True)
    os.chdir(given.work)
    os.environ |= {"DYNAMMO_HOME": "home", "PYTHONPATH": sys.path[0]}
    Path("images").symlink_to(source.root)
    classes = list(source.classes)
    random.Random(given.seed).shuffle(classes)
    shares: list[tuple[float, float]] = []
    for start in range(0, len(classes), 2):
        batch = write("batch.csv", source.samples, classes[start : start + 2], known)
        chosen = SETTINGS if not start else ()
        seed = (f"seed={given.seed}",) if not start else ()
        command("learn", "skin", batch, *(p for own in (*chosen, *seed) for p in ("--set", own)))
        seen = classes[: start + 2]
        model = Path("learners/skin/model")
        files = (
            write(f"{n}.csv", source.samples, seen, own) for n, own in (("a", {}), ("b", known))
        )
        alone, beside = (
            100 * float(evaluate_model(model, Path(file), lambda *_: None)["mean_class_recall"])
            for file in files
        )
        shares.append((alone, beside))
        print(
            f"{len(seen)} classes: image alone {alone:.1f}, with columns {beside:.1f}", flush=True
        )
    means = [sum(own) / len(own) for own in zip(*shares, strict=True)]
    print(f"seed {given.seed}: average {means[0]:.1f} -> {means[1]:.1f}, last "
          f"{shares[-1][0]:.1f} -> {shares[-1][1]:.1f}")  # fmt: skip


def read(metadata: Path) -> dict[str, dict[str, str]]:
    """By image, the columns."""
    with metadata.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        row["image"]: {
            name: row.get(own) or row.get("gender" if own == "sex" else own) or ""
            for name, own in COLUMNS.items()
        }
        for row in rows
    }


def write(
    name: str, samples: tuple[Sample, ...], classes: list[str], known: dict[str, dict[str, str]]
) -> str:
    """A CSV of some classes' images, with the columns where they are known."""
    with open(name, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "split", "class", "group", *COLUMNS])
        for own in samples:
            if own.label in classes:
                beside = known.get(Path(own.file).stem, dict.fromkeys(COLUMNS, ""))
                row = [f"images/{own.file}", own.split, own.label, own.group or ""]
                writer.writerow([*row, *beside.values()])
    return name


if __name__ == "__main__":
    main()
