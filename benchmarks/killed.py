"""kill -9 at chosen and at random points, and what is left.

The figures of benchmarks/measurements/reliability.md.

A command is ended by SIGKILL in a process of its own and then given again, at whatever point it
was, in a folder like the one before. It must end as one that nobody killed: the same files, the
same model, the same records in MLflow, each once, and nothing left under way.

Chosen are the calls by which files of results and learners appear, and the calls of MLflow that
record, register and move the alias: the first and the last of each, before it and after it. They
are found by listening to a command that is not killed.

    python benchmarks/killed.py FOLDER                    # as for data.source folder or csv
    python benchmarks/killed.py FOLDER --only learn --chosen 10 --random 5
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
from learner import load_images, state, whole, write_batch

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    ["flows.cli", "flows.learn", "flows.forget", "flows.incremental", "mlflow.pyfunc"]
)
# Calls that what is published and registered goes through.
MLFLOW = (
    *("create_run", "log_batch", "log_artifact", "log_artifacts", "set_tag", "set_terminated"),
    *("create_logged_model", "log_model_artifacts", "finalize_logged_model", "log_outputs"),
    *("create_registered_model", "create_model_version", "set_logged_model_tags"),
    *("set_model_version_tag", "set_registered_model_alias"),
)
WORK = ("results", "learners", "mlflow.db", "mlartifacts", "home")  # all that a command changes
QUICK = [
    *("train.epochs=2", "head.epochs=5", "image.size=64", "tracking.onnx_graph=false"),
    *("gate.min_last_recall=0", "gate.max_class_loss=1"),  # every version is champion
]


class Point(NamedTuple):
    """Before or after a call, which is counted by its name from 1."""

    name: str
    number: int
    after: bool

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} {self.name} {self.number}"


def main() -> int:
    """Measure, in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=["run", "learn", "forget"], action="append")
    parser.add_argument("--chosen", type=int, default=20, help="points of each command")
    parser.add_argument("--random", type=int, default=5, help="points of each command")
    parser.add_argument(
        "--minutes", type=float, default=20, help="for the points of each kind; then the next kind"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    images = load_images(given.folder.absolute())
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory(prefix="dynammo-killed-") as temporary:
        os.chdir(temporary)
        os.environ |= {
            "DYNAMMO_HOME": f"{temporary}/home",
            "MLFLOW_TRACKING_URI": f"sqlite:///{temporary}/mlflow.db",
            "PYTHONPATH": os.pathsep.join([str(root), str(root / "benchmarks")]),
        }
        from prefect.settings import PREFECT_API_URL
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=180):
            os.environ["PREFECT_API_URL"] = PREFECT_API_URL.value()
            names = sorted(images.classes)[:4]
            batches = [
                str(write_batch(images, names[i : i + 2], Path(f"arrived{i}"), limit=8))
                for i in (0, 2)
            ]
            write_batch(images, names, Path("all"), limit=8)
            wrong = measure(given, batches)
    return 1 if wrong else 0


def measure(given: argparse.Namespace, batches: list[str]) -> int:
    """Every command at every point; how many did not end as they should."""
    from tasks.support.mlflow.database import make_database

    settings = [*QUICK, *given.set]
    pairs = [part for setting in settings for part in ("--set", setting)]
    data = ["data.source=csv", "data.path=all", "data.name=all", "scenario.classes_per_task=2"]
    data += ["output=results/all", "methods=[merged,frozen]"]
    of_run = [part for setting in data for part in ("--set", setting)]
    commands = {
        "run": ([], ["run", *of_run, *pairs]),
        "learn": ([["learn", "it", batches[0], *pairs]], ["learn", "it", batches[1]]),
        "forget": (
            [["learn", "it", batches[0], *pairs], ["learn", "it", batches[1]]],
            ["forget", "it", "-t", "1"],
        ),
    }
    chance = random.Random(given.seed)
    wrong = 0
    print("| command | points | killed at them | ended as undisturbed | otherwise |")
    print("|---|---|---:|---:|---|", flush=True)
    for name in given.only or commands:
        before, command = commands[name]
        clear()
        make_database(Path("mlflow.db").absolute())
        for earlier in before:
            ended(earlier)
        keep("before")
        begun = time.perf_counter()
        points = chosen(listen(command), given.chosen)
        seconds = time.perf_counter() - begun
        expected = found()
        if name == "run":  # what comes before the chosen points is in the cache, to save time
            shutil.copytree("before", "begun")
            shutil.copytree("home", "begun/home", dirs_exist_ok=True)
        print(f"{name}: {seconds:.0f} s undisturbed", file=sys.stderr, flush=True)
        moments: dict[str, list[Point | float]] = {
            "chosen": [*points],
            "random": [chance.uniform(0, seconds) for _ in range(given.random)],
        }
        for kind, own in moments.items():
            started = time.perf_counter()
            hit, same, others = 0, 0, []
            for moment in own:
                if time.perf_counter() - started > 60 * given.minutes:
                    break
                put_back("begun" if (name, kind) == ("run", "chosen") else "before")
                if not killed(command, moment):
                    others.append(f"{moment}: not reached") if kind == "chosen" else None
                    continue
                hit += 1
                if name != "run" and not whole(learner_version()):
                    others.append(f"{moment}: damaged")
                ended(command)
                problems = differences(expected, found())
                same += not problems
                others += [f"{moment}: {'; '.join(problems)}"] if problems else []
                print(f"{name} {moment}: {problems or 'same'}", file=sys.stderr, flush=True)
            wrong += len(others)
            print(f"| {name} | {kind} | {hit} | {same} | {' / '.join(others) or '-'} |", flush=True)
    return wrong


def chosen(calls: list[str], most: int) -> list[Point]:
    """The first and last call of each name, before and after; spread where there are too many."""
    counts = {name: calls.count(name) for name in dict.fromkeys(calls)}
    points = [
        Point(name, number, after)
        for name, count in counts.items()
        for number in sorted({1, count})
        for after in (False, True)
    ]
    random.Random(0).shuffle(points)
    # One of each name before the second of any.
    rank = [sum(other.name == own.name for other in points[:i]) for i, own in enumerate(points)]
    ordered = [own for _, own in sorted(zip(rank, points, strict=True), key=lambda pair: pair[0])]
    return ordered[:most]


def listen(command: list[str]) -> list[str]:
    """Run a command to its end; the calls that it made, by name."""
    ended(command, "calls.txt")
    return Path("calls.txt").read_text().split()


def ended(command: list[str], notes: str | None = None) -> None:
    """Run a command in a process of its own, which must end well."""
    process = FORK.Process(target=run, args=(command, None, notes))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{command} ended with status {process.exitcode}")


def killed(command: list[str], moment: Point | float) -> bool:
    """Run a command up to a point, or for so many seconds; whether it was killed there."""
    point = moment if isinstance(moment, Point) else None
    process = FORK.Process(target=run, args=(command, point, None))
    process.start()
    process.join(None if point else moment)  # type: ignore[arg-type]
    if process.is_alive():
        process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def run(command: list[str], point: Point | None, notes: str | None) -> None:
    """What `dynammo` does with these arguments, listened to; ends at the point.

    The first call of a name and others are told apart by counting, in whatever thread they are.
    """
    import mlflow

    import tasks.publish
    from flows.cli import app
    from tasks.support import exchange

    counts: dict[str, int] = {}

    def listened(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **more: Any) -> Any:
            if name in ("replace", "unlink") and not _ours(arguments):
                return function(*arguments, **more)
            counts[name] = number = counts.get(name, 0) + 1
            if point == (name, number, False):
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **more)
            if point == (name, number, True):
                os.kill(os.getpid(), signal.SIGKILL)
            if notes:
                with Path(notes).open("a") as file:
                    file.write(f"{name}\n")
            return result

        return call

    for own in MLFLOW:
        setattr(mlflow.MlflowClient, own, listened(getattr(mlflow.MlflowClient, own), own))
    os.replace = listened(os.replace, "replace")
    for own in ("save_model", "write_report"):
        setattr(tasks.publish, own, listened(getattr(tasks.publish, own), own))
    exchange.exchanged = listened(exchange.exchanged, "exchanged")
    with Path("said.txt").open("a") as said, redirect_stdout(said):
        app(command)


def _ours(arguments: tuple[Any, ...]) -> bool:
    """Whether a call is about a file of results or of a learner."""
    here = Path.cwd()
    path = Path(os.path.abspath(os.fsdecode(arguments[-1])))
    return any(path.is_relative_to(here / name) for name in ("results", "learners"))


def learner_version() -> int:
    """Which one the learner is at."""
    return int(json.loads(Path("learners/it/learner.json").read_text())["current"])


def found() -> dict[str, Any]:
    """What a command made: files and answers by their hashes, and what MLflow has of it."""
    results, model = Path("results/all"), Path("learners/it/model")
    made: dict[str, Any] = {}
    if results.is_dir():
        made |= {
            str(file.relative_to(results)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(results.rglob("*"))
            if file.is_file()
        }
    if model.is_dir():
        made["learnt"] = state()
        made["model"] = [
            hashlib.sha256((model / name).read_bytes()).hexdigest()
            for name in ("model.json", "model.safetensors", "version.json")
        ]
    made["left over"] = sorted(
        str(path)
        for folder in ("results", "learners")
        for path in Path(folder).rglob(".*")
        # The last is of a registration; sweep removes it when an hour has passed.
        if path.name != ".gitignore"
        and not path.name.startswith(".registered.")
        and not any(own.name.startswith(".registered.") for own in path.parents)
    )
    with closing(sqlite3.connect("mlflow.db")) as database:
        made |= {name: sorted(database.execute(query)) for name, query in RECORDS.items()}
    return made


# Runs and models of killed processes are ended as FAILED or KILLED, and stay.
RECORDS = {
    "runs under way": "select status from runs where status = 'RUNNING'",
    "runs": "select name, count(*) from runs where status = 'FINISHED' group by name",
    "metrics": "select r.name, m.key, m.step, count(*) from metrics m join runs r "
    "on r.run_uuid = m.run_uuid where m.key not like '%second%' group by r.name, m.key, m.step",
    "logged models under way": "select status from logged_models where status = 1",
    "registered": "select name, version, status from model_versions",
    "linked": "select count(*), max(tag_value) from logged_model_tags "
    "where tag_key = 'mlflow.modelVersions'",
    "tags of versions": "select name, version, key from model_version_tags",
    "aliases": "select name, alias, version from registered_model_aliases",
}


def differences(expected: dict[str, Any], seen: dict[str, Any]) -> list[str]:
    """Where two outcomes differ, in words."""
    return [
        f"{key}: {str(seen.get(key))[:120]} instead of {str(expected.get(key))[:120]}"
        for key in sorted(expected.keys() | seen.keys())
        if expected.get(key) != seen.get(key)
    ]


def clear() -> None:
    """Nothing is there yet."""
    for name in WORK:
        path = Path(name)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for rest in Path().glob("mlflow.db-*"):
        rest.unlink()
    Path("calls.txt").unlink(missing_ok=True)


def keep(name: str) -> None:
    """Copy what is there now."""
    shutil.rmtree(name, ignore_errors=True)
    Path(name).mkdir()
    for own in WORK:
        if Path(own).is_dir():
            shutil.copytree(own, Path(name) / own)
        elif Path(own).is_file():
            shutil.copy2(own, name)


def put_back(name: str) -> None:
    """As it was when it was kept."""
    clear()
    shutil.copytree(name, ".", dirs_exist_ok=True)


if __name__ == "__main__":
    sys.exit(main())
