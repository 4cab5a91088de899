"""What `dynammo monitor` raises alarms on, and what it is silent on.

The table of benchmarks/measurements/monitoring.md.

A learner learns all classes but those held back from three tenths of the images; three tenths are
its test images, which the monitor compares with; batches for it are drawn from the rest: twenty
that share no image, clean and changed, and of a held-back class put into the clean ones.

    python benchmarks/monitor.py FOLDER WORK --hold SCC --hold VASC    # FOLDER with manifest.csv
    python benchmarks/monitor.py FOLDER WORK --hold SCC --hold VASC --batches 7    # larger ones

WORK is made; a learner that is there already is used again.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import flows  # noqa: F401, I001  (its settings must be there before Prefect is imported)
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from benchmarks.learner import command
from dynammo.data.samples import Sample
from dynammo.data.sources import csv_manifest
from dynammo.evaluation.monitoring import Seen, monitor
from tasks.monitor_learner import Arrived, held_out, look
from tasks.support.stage import known_classes
from tasks.support.version import config_of, context_in, find_learner, read_version

CHANGES: dict[str, Any] = {
    "clean": None,
    "blur, radius 1": lambda picture: picture.filter(ImageFilter.GaussianBlur(1)),
    "blur, radius 2": lambda picture: picture.filter(ImageFilter.GaussianBlur(2)),
    "20 % brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.2),
    "red +10 %, blue -15 %": lambda picture: picture.convert(
        "RGB", (*(1.1, 0, 0, 0), *(0, 1, 0, 0), *(0, 0, 0.85, 0))
    ),
}


def main() -> None:
    """Print the table of one data set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--hold", action="append", default=[], metavar="CLASS")
    parser.add_argument("--batches", type=int, default=20)
    given = parser.parse_args()
    source = csv_manifest.load(given.folder.absolute())
    given.work.mkdir(parents=True, exist_ok=True)
    os.chdir(given.work)
    os.environ |= {"DYNAMMO_HOME": "home", "PYTHONPATH": sys.path[0]}
    parts = split([own for own in source.samples if own.label not in given.hold], 1)
    folder = find_learner(given.folder.name)
    if not folder.exists:
        learn(folder.name, source.root, parts)
    version = read_version(folder)
    config = config_of(version)
    context, classes = context_in(folder, config), known_classes(version["stage"])
    reference = held_out(config, version, context)

    def seen(root: Path, samples: list[Sample]) -> Seen:
        return look(config, version, Arrived(root, samples, 0), context)[0]

    found = {
        name: seen(source.root if change is None else changed(source.root, parts["new"], change),
                   parts["new"])
        for name, change in CHANGES.items()
    }  # fmt: skip
    batches = groups_apart(parts["new"], given.batches)
    sizes = [len(own) for own in batches]
    print(f"{given.folder.name}: {len(reference.answers)} held-out images, batches of {sizes}")
    for name, own in found.items():
        report(name, [monitor(reference, taken(own, rows), classes) for rows in batches])
    for label in given.hold:
        held = seen(source.root, [own for own in source.samples if own.label == label])
        for share in (0.1, 0.3):
            report(f"{share:.0%} of {label}", [
                monitor(reference, mixed(found["clean"], rows, held, share, n), classes)
                for n, rows in enumerate(batches)
            ])  # fmt: skip


def learn(name: str, root: Path, parts: dict[str, list[Sample]]) -> None:
    """The learner, from the pictures where they are."""
    Path("images").symlink_to(root)
    with open("learn.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "split", "class", "group"])
        for part in ("train", "test"):
            for own in parts[part]:
                writer.writerow([f"images/{own.file}", part, own.label, own.group or ""])
    chosen = ("train.epochs=3", "tracking.register_model=false")
    command("learn", name, "learn.csv", *(part for own in chosen for part in ("--set", own)))


def changed(root: Path, samples: list[Sample], change: Any) -> Path:
    """The pictures after a change, in a folder of their own."""
    target = Path("changed").absolute()
    for own in samples:
        (target / own.file).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(root / own.file) as picture:
            change(picture.convert("RGB")).save(target / own.file, "PNG")
    return target


def groups_apart(samples: list[Sample], count: int) -> list[np.ndarray[Any, Any]]:
    """Rows of the batches: groups in random order, dealt out."""
    names = sorted({own.group or own.file for own in samples})
    random.Random(1).shuffle(names)
    batch = {name: place % count for place, name in enumerate(names)}
    owner = np.array([batch[own.group or own.file] for own in samples])
    return [np.flatnonzero(owner == number) for number in range(count)]


def taken(seen: Seen, rows: Any) -> Seen:
    """Some of the images."""
    *arrays, groups = seen  # pictures are kept here: each is an array
    return Seen(*(own[rows] for own in arrays), [groups[row] for row in rows])  # type: ignore


def mixed(clean: Seen, rows: Any, held: Seen, share: float, seed: int) -> Seen:
    """A batch with some images of a held-back class in the place of so many others."""
    random_ = np.random.default_rng(seed)
    count = round(share * len(rows))
    keep = taken(clean, random_.permutation(rows)[count:])
    extra = taken(held, random_.permutation(len(held.answers))[:count])
    *pairs, groups = zip(keep, extra, strict=True)
    return Seen(*map(np.concatenate, pairs), [*groups[0], *groups[1]])  # type: ignore


def report(name: str, batches: list[Any]) -> None:
    """A row: how many batches raised an alarm, and by which checks."""
    raised = [[check["name"] for check in own if check["alarm"]] for own in batches]
    kinds = ({"recall" if check[:6] == "recall" else check for check in own} for own in raised)
    by = Counter(check for own in kinds for check in own)
    told = ", ".join(f"{check} {count}" for check, count in by.most_common())
    print(f"| {name} | {sum(map(bool, raised))} of {len(batches)} | {told} |", flush=True)


def split(samples: list[Sample], seed: int) -> dict[str, list[Sample]]:
    """`train`, `test` and `new`: each class's groups in random order, cut at 0.3 and at 0.6."""
    parts: dict[str, list[Sample]] = {"train": [], "test": [], "new": []}
    placed: dict[str, str] = {}
    for label in sorted({sample.label for sample in samples}):
        groups: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            if sample.label == label:
                groups[sample.group or sample.file].append(sample)
        names = sorted(groups)
        random.Random(f"{seed} {label}").shuffle(names)
        total, done = sum(map(len, groups.values())), 0
        for name in names:
            share = done / total
            part = "train" if share < 0.3 else "test" if share < 0.6 else "new"
            part = placed.setdefault(name, part)  # a patient with two diseases stays together
            parts[part] += groups[name]
            done += len(groups[name])
    return parts


if __name__ == "__main__":
    main()
