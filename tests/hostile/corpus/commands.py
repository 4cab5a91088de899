"""What is typed: arguments of every command of `dynammo`, and damaged learners behind them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from typer.testing import CliRunner

from dynammo.checkpoint import to_json
from dynammo.errors import DataError
from dynammo.learner.folder import FORMAT
from tests.hostile.corpus.batches import picture
from tests.hostile.corpus.judging import Case
from tests.hostile.corpus.models import copied
from tests.hostile.corpus.pictures import encoded, odd

COMMANDS: dict[str, tuple[list[str], str]] = {
    "no such command": (["teach"], "No such command"),
    "an unknown option": (["run", "--fast"], "No such option"),
    "run: no file": (["run", "-p", "no.yaml"], "cannot read no.yaml"),
    "run: a folder": (["run", "-p", "."], "Is a directory"),
    "run: an unknown key": (["run", "-s", "a.b=1"], "unknown key"),
    "run: results in a file": (["run", "-s", "output=there.txt"], "is a file"),
    "run: results in a full folder": (["run", "-s", "output=full"], "would be replaced"),
    "config: no value": (["config", "-s", "seed"], "is not key=value"),
    "predict: nothing": (["predict"], "Missing"),
    "predict: no model": (["predict", "a.png"], "Missing option"),
    "predict: no such model": (["predict", "a.png", "-m", "no"], "no usable model"),
    "predict: a file as model": (["predict", "a.png", "-m", "there.txt"], "no usable model"),
    "predict: no such image": (["predict", "no.png", "-m", "graph"], "no such file or folder"),
    "predict: an empty folder": (["predict", "empty", "-m", "graph"], "no image files"),
    "predict: a FIFO": (["predict", "pipe.png", "-m", "graph"], "no such file or folder"),
    "predict: a device": (["predict", "/dev/zero", "-m", "graph"], "no such file or folder"),
    "predict: an unknown form": (["predict", "a.png", "-m", "graph", "-f", "xls"], "Invalid value"),
    "predict: Parquet to the terminal": (
        ["predict", "a.png", "-m", "graph", "-f", "parquet"],
        "give it a file",
    ),
    "predict: an unknown engine": (
        ["predict", "a.png", "-m", "graph", "--engine", "gpu"],
        "Invalid value",
    ),
    "predict: no graph": (
        ["predict", "a.png", "-m", "model", "--engine", "onnx"],
        "no usable|no graph|graph",
    ),
    "predict: into a folder": (["predict", "a.png", "-m", "graph", "-o", "full"], "Is a directory"),
    "predict: below a file": (
        ["predict", "a.png", "-m", "graph", "-o", "there.txt/a.csv"],
        "Not a directory",
    ),
    "predict: a path of 5,000 letters": (["predict", "a" * 500, "-m", "graph"], "no such|too long"),
    "evaluate: no data": (["evaluate", "no", "-m", "model"], "no such|no class folders"),
    "evaluate: no classes": (["evaluate", "empty", "-m", "model"], "no class folders"),
    "evaluate: classes that are not known": (["evaluate", "full", "-m", "model"], "not learnt"),
    "evaluate: a picture": (["evaluate", "a.png", "-m", "model"], "not a CSV"),
    "evaluate: no model": (["evaluate", "full", "-m", "no"], "no usable model"),
    "compare: nothing": (["compare"], "Missing"),
    "compare: no results": (["compare", "empty"], "holds no results"),
    "compare: a file": (["compare", "there.txt"], "holds no results"),
    "benchmark: no grid": (["benchmark", "no.yaml"], "cannot read no.yaml"),
    "benchmark: an empty grid": (["benchmark", "there.txt", "--dry-run"], "must hold|is missing"),
    "benchmark: a picture": (["benchmark", "a.png"], "not UTF-8"),
    "benchmark: a seed that is none": (["benchmark", "no.yaml", "--seed", "x"], "Invalid value"),
    "benchmark: a path without a name": (["benchmark", "no.yaml", "--path", "x"], "not key=value"),
    "export: an unknown set": (["export", "mnist", "out"], "no data set that can be written"),
    "export: no folder": (["export", "digits"], "Missing"),
    "export: into a file": (["export", "digits", "there.txt"], "there.txt"),
    "export: an unknown option": (["export", "digits", "o", "-o", "a=1"], "option|a"),
    "datasets: an unknown set": (["datasets", "mnist"], "unknown|known"),
    "export-model: no model": (["export-model", "no", "out"], "no usable model|no such"),
    "export-model: an unknown form": (
        ["export-model", "model", "out", "-f", "tflite"],
        "unknown|known",
    ),
    "export-model: into a full folder": (["export-model", "model", "full"], "full"),
    "export-model: into a file": (["export-model", "model", "there.txt"], "there.txt"),
    "export-model: no pictures": (
        ["export-model", "model", "out", "--check", "empty"],
        "no image files",
    ),
    "doctor: no file": (["doctor", "-p", "no.yaml"], "cannot read no.yaml"),
    "learn: a path as name": (["learn", "../x", "full"], "is no name of a learner"),
    "learn: a registered model without a version": (["learn", "models:/x", "full"], "expected"),
    "learn: no batch": (["learn", "x", "no"], "no such file or folder"),
    "learn: a blank name": (["learn", " ", "full"], "is no name of a learner"),
    "learn: no value": (["learn", "x", "full", "-s", "seed"], "is not key=value"),
    "history: nobody": (["history", "nobody"], "there is no learner 'nobody'"),
    "history: a path": (["history", "../.."], "is no name of a learner"),
    "held: nobody": (["held", "nobody"], "there is no learner 'nobody'"),
    "purge: nobody": (["purge", "nobody"], "there is no learner 'nobody'"),
    "forget: nothing": (["forget", "nobody"], "forget what"),
    "forget: nobody": (["forget", "nobody", "-t", "1"], "there is no learner 'nobody'"),
    "forget: both": (["forget", "x", "-t", "1", "-g", "p"], "by itself"),
    "merge: nothing": (["merge", "nobody"], "merge what"),
    "merge: nobody": (["merge", "nobody", "-t", "1"], "there is no learner 'nobody'"),
    "rollback: nobody": (["rollback", "nobody", "1"], "there is no learner 'nobody'"),
    "rollback: a version that is none": (["rollback", "nobody", "x"], "Invalid value"),
    "promote: nobody": (["promote", "nobody", "1"], "there is no learner 'nobody'"),
    "plan: nobody": (["plan", "nobody"], "there is no learner 'nobody'"),
    "plan: a draft of a file": (["plan", "nobody", "x", "--draft"], "there is no learner|takes"),
    "report: nobody": (["report", "nobody"], "there is no learner 'nobody'"),
    "report: pictures within": (["report", "nobody", "--pictures"], "needs --output"),
}
# Of a learner, behind every command that only reads.
POINTERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is damaged"),
    "a list": (b"[]", "is damaged"),
    "a number": (b"3", "is damaged"),
    "not UTF-8": (b"\xff\xfe", "is damaged"),
    "nested 200,000 deep": (b"[" * 200_000, "is damaged"),
    "another format": (to_json({"format": 99}), "is of format 99"),
    "a format that is a list": (to_json({"format": [2]}), r"is of format \[2\]"),
    "nothing but a format": (to_json({"format": FORMAT}), "is damaged"),
    "a version as text": (
        to_json({"format": FORMAT, "current": "x", "champion": 0, "champions": [], "plans": []}),
        "is damaged",
    ),
    "a version that is nothing": (
        to_json({"format": FORMAT, "current": None, "champion": 0, "champions": [], "plans": []}),
        "is damaged",
    ),
    "a version that is not there": (
        to_json({"format": FORMAT, "current": 7, "champion": 7, "champions": [], "plans": []}),
        "has no version 7|is damaged",
    ),
    "no plans": (
        to_json({"format": FORMAT, "current": 1, "champion": 1, "champions": []}),
        "is damaged",
    ),
}
RESULTS: dict[str, bytes] = {
    "nothing": b"",
    "a list": b"[]",
    "a number": b"3",
    "not UTF-8": b"\xff\xfe",
    "nested 200,000 deep": b"[" * 200_000,
    "nothing but a name": b'{"name": "x"}',
    "variants as a list": b'{"name": "x", "variants": []}',
    "no variants": b'{"name": "x"}',
    "a name by number": b'{"name": 3, "variants": {}}',
    "variants of nothing": b'{"name": "x", "variants": {"merged": null}}',
    "a summary of nothing": b'{"name": "x", "variants": {"merged": {"summary": null}}}',
}


def cases() -> Iterator[Case]:
    """All about commands."""
    for name, (arguments, says) in COMMANDS.items():
        yield Case("commands", name, partial(_typed, arguments), says)
    for name, (content, says) in POINTERS.items():
        for command in (["history"], ["held"], ["report"], ["plan"]):
            if name == "a version that is not there" and command != ["report"]:
                continue  # nothing of that version is asked for
            yield Case(
                "learners",
                f"{command[0]}: a pointer that is {name}",
                partial(_learner, content, [*command, "it"]),
                says,
            )
    for name, own in RESULTS.items():
        yield Case("results", name, partial(_results, own), "is damaged")
    for form in ("csv", "json", "jsonl", "parquet"):
        yield Case(
            "streams",
            f"{len(odd())} bad images of {len(odd()) + 3}, {form}",
            partial(_stream, form),
            "images have no answer; first: ",
        )


def _prepare(place: Path) -> None:
    copied("graph", place)
    copied("model", place)
    picture(place / "a.png")
    picture(place / "full/zebra/a.png")
    (place / "there.txt").write_text("")
    (place / "empty").mkdir()
    os.mkfifo(place / "pipe.png")


def _typed(arguments: list[str], place: Path) -> None:
    """As typed in a folder of its own. What it says on standard error is raised as an error."""
    from flows.cli import app

    if not (place / "graph").exists():
        _prepare(place)
    ready = patch("flows.cli.server.ready", lambda: None)
    server = {"DYNAMMO_LEARNERS": str(place / "learners"), "COLUMNS": "400"}
    with chdir(place), patch.dict(os.environ, server), ready, _no_flow():
        done = CliRunner().invoke(app, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    if done.exit_code == 0:
        return
    said = done.stderr.strip() or done.stdout.strip()
    if "Usage:" in said:  # in a box, by typer
        said = " ".join(said[said.index("Error") :].replace("\u2502", "").split())
    elif "problem" in done.stdout:  # the doctor's report
        said = next(line for line in done.stdout.splitlines() if "cannot read" in line)
    problems = said[max(said.find("error: "), 0) :].removeprefix("error: ").split("\n  - ")
    raise DataError(problems[1:] if len(problems) > 1 else problems)


def _no_flow() -> Any:
    """Nothing bad may get as far as a task: a server would be started for it."""

    def started(*_: Any, **__: Any) -> Any:
        raise AssertionError("a flow was started")

    return patch.multiple("prefect.flow_engine", run_flow=started)


def _learner(content: bytes, arguments: list[str], place: Path) -> None:
    folder = place / "learners" / "it"
    folder.mkdir(parents=True)
    (folder / "learner.json").write_bytes(content)
    _typed(arguments, place)


def _results(content: bytes, place: Path) -> None:
    (place / "results").mkdir()
    (place / "results/results.json").write_bytes(content)
    _typed(["compare", "results"], place)


def _stream(form: str, place: Path) -> None:
    """Bad images among good ones: each has its row, and the status says so."""
    _prepare(place)
    folder = place / "photos"
    folder.mkdir()
    for number, content in enumerate(
        [*odd().values(), *(encoded(k) for k in ("PNG", "BMP", "GIF"))]
    ):
        (folder / f"{number:03}.png").write_bytes(content)
    output = place / f"answers.{form}"
    try:
        _typed(["predict", "photos", "-m", "graph", "-o", str(output)], place)
    finally:
        _check_rows(output, form, len(odd()))


def _check_rows(output: Path, form: str, bad: int) -> None:
    import pandas as pd

    read: Callable[[Path], pd.DataFrame] = {
        "csv": pd.read_csv,
        "json": pd.read_json,
        "jsonl": partial(pd.read_json, lines=True),
        "parquet": pd.read_parquet,
    }[form]
    rows = read(output)
    assert len(rows) == bad + 3, len(rows)
    assert rows["error"].notna().sum() == bad
