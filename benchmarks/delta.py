"""How many bytes bring a device from one version of a model to the next.

Between model folders of one learner, in their order: the size of the new one, as it is and packed
(xz); of a delta of differences alone, without maps; and of the delta (`dynammo delta`), which is
applied and compared with the folder byte for byte.

    python benchmarks/delta.py --learn FOLDER    # learns its classes, two a batch, as learner.py
    python benchmarks/delta.py MODEL MODEL...    # folders that are there
"""

from __future__ import annotations

import argparse
import lzma
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

from dynammo.deploy import delta
from dynammo.deploy.delta import apply_delta, make_delta, read_delta

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="*", help="versions of a model, at least two")
    parser.add_argument("--learn", type=Path, metavar="FOLDER", help="images to learn instead")
    parser.add_argument("--classes", type=int, default=2, help="a batch")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    if bool(given.learn) == bool(given.models):
        parser.error("give model folders, or --learn FOLDER")
    with tempfile.TemporaryDirectory(prefix="dynammo-delta-") as temporary:
        models = [own.absolute() for own in given.models]
        if given.learn:
            models = learnt(given.learn.absolute(), given.classes, given.set, Path(temporary))
        show(models, Path(temporary))


def learnt(source: Path, classes: int, settings: Sequence[str], place: Path) -> list[Path]:
    """The model folders of a learner's versions; each is promoted, whatever the gate says."""
    from learner import LearnerFolder, command, load_images, options, write_batch

    os.chdir(place)
    os.environ |= {
        "DYNAMMO_HOME": f"{place}/home",
        "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db",
        "PYTHONPATH": str(ROOT),
    }
    images = load_images(source)
    names = sorted(images.classes)
    chosen = [*settings, "tracking.register_model=false", "gate.max_class_loss=1"]
    models = []
    for number, start in enumerate(range(0, len(names), classes), start=1):
        batch = write_batch(images, names[start : start + classes], Path("arrived"))
        command("learn", "it", str(batch), *options(chosen if number == 1 else []))
        if LearnerFolder(Path("learners"), "it").pointer()["champion"] != number:
            command("promote", "it", str(number), "--reason", "to be measured")
        models.append(Path(shutil.copytree("learners/it/model", place / f"version-{number}")))
    return models


def show(models: Sequence[Path], place: Path) -> None:
    """A row a version."""
    print("| to | MB | packed, MB | differences, kB | delta, kB | times smaller | CPU s, applied |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for old, new in pairwise(models):
        files = {path.name: path.read_bytes() for path in new.iterdir()}
        whole = sum(map(len, files.values()))
        packed = sum(len(lzma.compress(content, preset=9)) for content in files.values())
        with patch.object(delta, "_map_between", lambda *_: None):
            differences = len(make_delta(old, new).content)
        made = make_delta(old, new).content
        file, target = place / "update.delta", Path(tempfile.mkdtemp(dir=place))
        file.write_bytes(made)
        start = time.process_time()
        apply_delta(read_delta(file), old, target)
        spent = time.process_time() - start
        if files != {path.name: path.read_bytes() for path in target.iterdir()}:
            raise SystemExit(f"{new} is not what came out")
        shutil.rmtree(target)
        print(
            f"| {new.name} | {whole / 1e6:.1f} | {packed / 1e6:.1f} | {differences / 1e3:.0f} "
            f"| {len(made) / 1e3:.0f} | {whole / len(made):.0f} | {spent:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
