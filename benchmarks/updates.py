"""Three updates of a learner under a plan: one that passes, one that fails by a class, one outside.

The table of benchmarks/measurements/change-control.md. Small and quick: 64 pixels
and two epochs, to show how a plan judges, not how good a method is.

    python benchmarks/updates.py data/skin8 WORK    # the data set's folder, with manifest.csv

WORK is made; in it are the learner, with the reports of all versions, and the plan.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = [sys.executable, "-c", "from flows.command import app; app()"]

FIRST = ["NV", "MEL", "BCC", "BKL"]
SETTINGS = {"image.size": 64, "train.epochs": 2, "memory.per_class": 10}
PLAN: dict[str, Any] = {
    "device": "Skin lesion assistant",
    "intended_use": "Second reader of dermatoscopic pictures for dermatologists; never alone.",
    "named": [
        {"name": "VASC", "images": 60, "test_images": 20, "patients": 40},
        {"name": "AK", "images": 60, "test_images": 20, "patients": 40},
    ],
    "modifications": ["add_named_class", "retrain_same_classes", "forget"],
    "rollback": {"to": "authorised", "when": "two complaints in one week about the same class"},
    "signatures": [
        "Dr. A. Example, head of dermatology, 2027-01-05",
        "B. Example, quality management, 2027-01-05",
    ],
}
LIMITS = {
    "confidence": 0.95,
    "sensitivity": {"every_class": 0.35, "classes": {"MEL": 0.4}},
    "non_inferiority": {
        "champion": {"mean": 0.1, "each_class": 0.3},
        "authorised": {"mean": 0.15},
    },
    "negative_flips": {"overall": 0.2, "grave": {"MEL": 0.3}},
    "ece": 0.2,
}
HONEST = ("coverage", "set_size", "false_alarms", "found", "as_unknown")


def main() -> None:
    """Learn four classes, agree on the plan, and make the three updates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True)
    (given.work / "images").symlink_to(given.folder.absolute(), target_is_directory=True)
    os.chdir(given.work)
    os.environ |= {"PYTHONPATH": str(ROOT), "PREFECT_LOGGING_LEVEL": "WARNING"}
    settings = [part for own in SETTINGS.items() for part in ("--set", "=".join(map(str, own)))]
    dynammo("learn", "skin", pick("first", FIRST), *settings)
    draft = yaml.safe_load(dynammo("plan", "skin", "--draft"))
    kept = {key: draft[key] for key in ("authorised", "locked_test")}
    Path("plan.yaml").write_text(yaml.safe_dump({**PLAN, **kept, "limits": LIMITS}))
    dynammo("plan", "skin", "plan.yaml")
    dynammo("learn", "skin", pick("vasc", ["VASC"]), accept=(0, 3, 4))
    dynammo("learn", "skin", pick("ak", ["AK"]), accept=(0, 3, 4))
    dynammo("rollback", "skin", "2")
    stated = ("--modification", "new_site")
    dynammo("learn", "skin", pick("scc", ["SCC"]), *stated, accept=(0, 3, 4))
    for number in (2, 3, 4):
        tell(Path(f"learners/skin/reports/{number:04d}.json"))


def pick(name: str, classes: list[str]) -> str:
    """A batch of some classes, as a CSV."""
    with Path("images/manifest.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["class"] in classes]
    with Path(f"{name}.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "file": f"images/{row['file']}"} for row in rows)
    return f"{name}.csv"


def dynammo(*arguments: str, accept: tuple[int, ...] = (0,)) -> str:
    """Run a command; what it prints."""
    made = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=False)
    if made.returncode not in accept:
        raise SystemExit(made.stdout + made.stderr)
    print(f"{' '.join(arguments)}: exit status {made.returncode}", flush=True)
    return made.stdout


def tell(file: Path) -> None:
    """Print what a report says, in a few lines."""
    report = json.loads(file.read_text())
    judgement = report["judgement"]
    overall = judgement["comparison"]["overall"]
    old, new, *change = (100 * overall[key] for key in ("old", "new", "difference", "low", "high"))
    print(f"\nversion {report['version']}, {report['operation']}: {judgement['outcome']}")
    told = ", ".join(f"{own:+.1f}" for own in change)
    print(f"  recall of old classes {old:.1f} -> {new:.1f} ({told})")
    print(f"  right before, wrong now: {overall['negative_flips']} of {overall['images']}")
    for reason in judgement["outside"]:
        print(f"  outside: {reason}")
    for row in judgement["requirements"]:
        if row["verdict"] == "not met":
            print(f"  not met: {row['requirement']} {row['limit']}: {row['detail']}")
    honesty = judgement["honesty"]
    for name, own in honesty["classes"].items():
        print(f"  {name}: {own['images']} images, {shares(own, HONEST)}")
    print(f"  called unknown, of all: {shares(honesty['alarms'], tuple(honesty['alarms']))}")
    apart = [own["as_unknown"] for own in honesty["classes"].values()]
    if None not in apart:
        print(f"  told apart as if unknown, mean AUROC {sum(apart) / len(apart):.3f}")


def shares(values: dict[str, Any], names: tuple[str, ...]) -> str:
    """Some of the values by name; "-" where too few images gave none."""
    return ", ".join(
        f"{name} {'-' if values[name] is None else format(values[name], '.3f')}" for name in names
    )


if __name__ == "__main__":
    main()
