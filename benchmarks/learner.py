"""What a learner is measured to do: the numbers of benchmarks/measurements/learner.md.

story   batches of classes, learnt by `dynammo learn` and deleted, beside a run over all of them:
        recall after each, seconds and memory of each command (cold start included), size
many    fifty batches of one class: seconds, bytes and memory of each
kill    kill -9 at random moments of learn and of forget: intact, and the same end?
shift   more images of known classes from another scanner: recall on old and new images

    python benchmarks/learner.py story FOLDER    # as for data.source folder or csv
    python benchmarks/learner.py many FOLDER --set image.size=64
    python benchmarks/learner.py kill FOLDER --times 50
    python benchmarks/learner.py shift FOLDER
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
import flows  # noqa: F401, I001  (its settings must be there before Prefect is imported)
from PIL import Image, ImageEnhance, ImageFilter

from dynammo.data.samples import ImageSet, Sample
from dynammo.data.sources import csv_manifest, folder
from dynammo.learner.folder import LearnerFolder

PROGRAM = [sys.executable, "-c", "from flows.command import app; app()"]
ROOT = Path(__file__).resolve().parents[1]
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["flows.cli", "flows.learn", "flows.forget"])


def main() -> int:
    """Run one of them, in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["story", "many", "kill", "shift"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, default=2, help="a batch (story)")
    parser.add_argument("--times", type=int, default=50, help="batches (many), kills (kill)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    images = load_images(given.folder.absolute())
    with tempfile.TemporaryDirectory(prefix="dynammo-learner-") as temporary:
        os.chdir(temporary)
        os.environ["DYNAMMO_HOME"] = f"{temporary}/home"
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{temporary}/mlflow.db"
        os.environ["PYTHONPATH"] = str(ROOT)
        settings = [*given.set, f"seed={given.seed}", "tracking.register_model=false"]
        globals()[given.what](given, images, settings)
    return 0


def load_images(source: Path) -> ImageSet:
    """A folder with manifest.csv, or with train/<class>/* and test/<class>/*."""
    if (source / "manifest.csv").is_file():
        return csv_manifest.load(source)
    return folder.load(source)


def story(given: argparse.Namespace, images: ImageSet, settings: list[str]) -> None:
    """See the top."""
    names = sorted(images.classes)
    tasks = [names[i : i + given.classes] for i in range(0, len(names), given.classes)]
    rows = []
    for number, classes in enumerate(tasks, start=1):
        batch = write_batch(images, classes, Path("arrived"))
        chosen = settings if number == 1 else []
        seconds, memory = command("learn", "it", str(batch), *options(chosen))
        shutil.rmtree(batch)
        size = LearnerFolder(Path("learners"), "it").bytes()
        rows.append([number, ", ".join(classes), seconds, memory, size / 1e6])
    write_batch(images, names, Path("all"))
    overrides = [
        *settings,
        "methods=[merged,frozen]",
        "data.name=all",
        "data.source=csv",
        "data.path=all/manifest.csv",
        f"scenario.tasks={json.dumps(tasks)}",
        "output=results",
    ]
    seconds, memory = command("run", *options(overrides))
    whole = json.loads(Path("results/results.json").read_text())["variants"]
    print(f"\n{given.folder.name}: mean class recall of merged (frozen), in %")
    print("| batch | classes | learner | run over all | seconds | MB of memory | MB of learner |")
    print("|---|---|---:|---:|---:|---:|---:|")
    same = True
    for row in rows:
        found = {name: metrics(row[0], name) for name in ("merged", "frozen")}
        expected = {name: whole[name]["stages"][row[0] - 1] for name in found}
        for name, own in found.items():
            same &= own["per_class"] == expected[name]["per_class"]
        a, b = (
            " ({:.2f})".join(["{:.2f}", ""]).format(
                *(100 * side[name]["mean_class_recall"] for name in ("merged", "frozen"))
            )
            for side in (found, expected)
        )
        print(f"| {row[0]} | {row[1]} | {a} | {b} | {row[2]:.0f} | {row[3]:.0f} | {row[4]:.1f} |")
    print(f"run over all: {seconds:.0f} s, {memory:.0f} MB. Every recall the same: {same}")


def many(given: argparse.Namespace, images: ImageSet, settings: list[str]) -> None:
    """See the top."""
    import psutil

    from dynammo.config import parse_overrides
    from flows.learn import learn

    process, rows, size = psutil.Process(), [], 0
    print("| batch | seconds | of it CPU | MB added to the learner | MB of memory |")
    print("|---|---:|---:|---:|---:|", flush=True)
    for number, name in enumerate(sorted(images.classes)[: given.times], start=1):
        batch = write_batch(images, [name], Path("arrived"))
        start, cpu = time.perf_counter(), time.process_time()
        learn("it", str(batch), None, parse_overrides(settings) if number == 1 else None)
        spent, used = time.perf_counter() - start, time.process_time() - cpu
        shutil.rmtree(batch)
        total = LearnerFolder(Path("learners"), "it").bytes()
        rows.append((number, spent, used, (total - size) / 1e6, process.memory_info().rss / 1e6))
        size = total
        print("| {} | {:.1f} | {:.1f} | {:.2f} | {:.0f} |".format(*rows[-1]), flush=True)


def kill(given: argparse.Namespace, images: ImageSet, settings: list[str]) -> None:
    """See the top."""
    names = sorted(images.classes)
    batches = [
        write_batch(images, names[i : i + 1], Path(f"arrived{i}"), limit=12) for i in range(3)
    ]
    quick = [*settings, "train.epochs=2", "image.size=64"]
    chance = random.Random(given.seed)
    for what in ("learn", "forget"):
        shutil.rmtree("learners", ignore_errors=True)
        command("learn", "it", str(batches[0]), *options(quick))
        command("learn", "it", str(batches[1]))
        shutil.copytree("learners", "before")
        step = ["learn", "it", str(batches[2])] if what == "learn" else ["forget", "it", "-t", "1"]
        begun = killed(step, None)
        expected = state()
        intact = same = late = 0
        print(f"{what}: an undisturbed step takes {begun:.1f} s", flush=True)
        for kill in range(1, given.times + 1):
            shutil.rmtree("learners")
            shutil.copytree("before", "learners")
            ended = killed(step, chance.uniform(0, begun))
            late += ended is not None
            pointer = json.loads(Path("learners/it/learner.json").read_text())
            intact += pointer["current"] in (2, 3) and whole(pointer["current"])
            if pointer["current"] == 2:
                killed(step, None)
            same += state() == expected
            print(f"{kill}: {intact} intact, {same} identical ends", flush=True)
        shutil.rmtree("before")
        print(
            f"{what}: killed {given.times - late} times while it was under way, {intact} of "
            f"{given.times} learners intact, {same} identical ends",
            flush=True,
        )


def shift(given: argparse.Namespace, images: ImageSet, settings: list[str]) -> None:
    """See the top."""
    names = sorted(images.classes)
    half = {}
    for sample in images.samples:
        half.setdefault((sample.split, sample.label), []).append(sample)
    old = ImageSet(images.root, tuple(s for own in half.values() for s in own[::2]))
    new = ImageSet(images.root, tuple(s for own in half.values() for s in own[1::2]))
    first = write_batch(old, names, Path("old"))
    second = write_batch(new, names, Path("new"), change=other_scanner)
    command("learn", "it", str(first), *options(settings))
    before = {own.name: evaluate(own) for own in (first, second)}
    command("learn", "it", str(second))
    command("promote", "it", "2", "--reason", "to be measured")
    print("mean class recall in %, before and after the new scanner's images were learnt")
    for own in (first, second):
        print(f"{own.name} images: {before[own.name]:.1f} -> {evaluate(own):.1f}", flush=True)


def other_scanner(picture: Image.Image) -> Image.Image:
    """Darker, blurred, and of a smaller field."""
    width, height = picture.size
    cut = picture.crop((width // 10, height // 10, width - width // 10, height - height // 10))
    blurred = cut.resize(picture.size).filter(ImageFilter.GaussianBlur(width / 100))
    return ImageEnhance.Brightness(blurred).enhance(0.7)


def write_batch(
    images: ImageSet,
    classes: Sequence[str],
    target: Path,
    limit: int | None = None,
    change: Any = None,
) -> Path:
    """Some classes' pictures as they would arrive, with a CSV that names their groups."""
    shutil.rmtree(target, ignore_errors=True)
    rows, count = [], {}
    for sample in images.samples:
        key = (sample.split, sample.label)
        count[key] = count.get(key, 0) + 1
        if sample.label not in classes or (limit and count[key] > limit):
            continue
        rows.append(_row(sample))
        file = target / sample.file
        file.parent.mkdir(parents=True, exist_ok=True)
        if change is None:
            shutil.copy2(images.root / sample.file, file)
        else:
            with Image.open(images.root / sample.file) as picture:
                change(picture.convert("RGB")).save(file)
    with (target / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "split", "class", "group"])
        writer.writerows(rows)
    return target.absolute()


def _row(sample: Sample) -> list[str]:
    return [sample.file, sample.split, sample.label, sample.group or ""]


def options(settings: Sequence[str]) -> list[str]:
    """As the command line takes them."""
    return [part for setting in settings for part in ("--set", setting)]


def command(*arguments: str) -> tuple[float, float]:
    """Run `dynammo` in a process of its own; its seconds, and the MB it had at most."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*PROGRAM, *arguments], stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            log.seek(0)
            raise SystemExit(log.read().decode()[-3000:])
    return time.perf_counter() - start, usage.ru_maxrss / 1e3


def killed(step: list[str], after: float | None) -> float | None:
    """Run a step and kill it so long after it took the learner up; none, or how long it took.

    In a process of its own, forked from one that has imported the program already.
    """
    marker = Path("learners/it/work/step.json")
    process = FORK.Process(target=run_step, args=(step,))
    process.start()
    while not marker.exists() and process.is_alive():
        time.sleep(0.01)
    start = time.perf_counter()
    process.join(after)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    assert process.exitcode == 0, f"{step} failed"
    return time.perf_counter() - start


def run_step(step: list[str]) -> None:
    """What `dynammo` does with these arguments."""
    from flows.cli import app

    app(step)


def state() -> Any:
    """What the learner has learnt, by the hashes of its tensors."""
    version = LearnerFolder(Path("learners"), "it").current()
    stage = version["stage"]
    return [version["number"], stage["adapted"], stage["methods"], version["tests"]]


def whole(number: int) -> bool:
    """Whether every file of a version is there and undamaged."""
    from dynammo.checkpoint import references_in

    learner = LearnerFolder(Path("learners"), "it")
    return all(learner.store.intact(ref) for ref in references_in(learner.version(number)))


def metrics(number: int, method: str) -> dict[str, Any]:
    """What a method was measured to do in a version."""
    learner = LearnerFolder(Path("learners"), "it")
    evaluated = learner.version(number)["stage"]["methods"][method]["evaluated"]
    found: dict[str, Any] = learner.store.load_json(evaluated["metrics"])
    return found


def evaluate(batch: Path) -> float:
    """Mean class recall in % of the champion's model on a batch's test images."""
    from flows.cli.show import evaluate_model

    document = evaluate_model(Path("learners/it/model"), batch / "manifest.csv", lambda *_: None)
    return 100 * float(document["mean_class_recall"])


if __name__ == "__main__":
    sys.exit(main())
