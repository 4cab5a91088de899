"""What a run leaves that is stopped, and what the user is told where the machine refuses."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dynammo.errors import ConfigError, DataError
from flows import incremental as story
from flows.cli import app
from tasks import track
from tasks.publish import check_output

RUNS = {"parent": "p", "children": {}, "experiment_id": "1"}


@pytest.mark.parametrize(
    ("stop", "status"),
    [(KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED"), (DataError("x"), "FAILED")],
    ids=["Ctrl-C", "SIGTERM", "an error"],
)
def test_mlflow_runs_of_a_stopped_run_do_not_stay_running(
    stop: BaseException, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The story up to the first step within the runs, with nothing behind it."""
    ended: list[str] = []

    def stopped(*_: Any) -> None:
        raise stop

    batch = {"number": 1, "test": {}}
    data = {"tasks": [batch], "manifest": "m", "classes": []}
    for name, result in {
        "sweep": None,
        "check_output": None,
        "check_parts": None,
        "version_data": data,
        "prepare_images": {},
        "at": None,
        "start": None,
        "open_runs": RUNS,
    }.items():
        monkeypatch.setattr(story, name, lambda *_, result=result: result)
    monkeypatch.setattr(story, "keep_images", stopped)
    monkeypatch.setattr(track.mlflow_runs, "finish_runs", lambda _, status: ended.append(status))
    with pytest.raises(type(stop)):
        story.incremental.fn(None)
    assert ended == [status]


def told(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1, done.output
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("error: ").rstrip("\n")


def test_predictions_into_a_folder_are_refused_before_any_image(tmp_path: Path) -> None:
    """There is no model and no image: neither was looked for."""
    told_of = told("predict", "nowhere.png", "-m", "no model", "-o", str(tmp_path))
    assert told_of == f"{tmp_path}: Is a directory"
    (tmp_path / "file").touch()
    below = str(tmp_path / "file" / "answers.csv")
    assert "Not a directory" in told("predict", "x.png", "-m", "no model", "-o", below) or (
        "File exists" in told("predict", "x.png", "-m", "no model", "-o", below)
    )


def test_an_image_whose_name_is_not_utf8_is_refused_in_a_line(
    tmp_path: Path, model_folder: Path
) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    Path(path).write_bytes(b"x")
    assert told("predict", path, "-m", str(model_folder)).endswith(
        "caf\\udce9.png': the name is not UTF-8"
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/full/x"), "/full/x: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (MemoryError(), "the memory does not suffice"),
        (RuntimeError("CUDA out of memory. Tried to"), "the memory does not suffice"),
        (RecursionError("maximum recursion depth"), "nested too deeply"),
    ],
)
def test_what_the_machine_refuses_is_a_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr("dynammo.config.load_config", refuse)
    assert line in told("config")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynammo.config.load_config", lambda *_: 1 / 0)
    assert isinstance(CliRunner().invoke(app, ["config"]).exception, ZeroDivisionError)


def test_results_that_cannot_be_written_are_refused_before_anything_is_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_output(tmp_path / "results" / "new")
    assert not (tmp_path / "results").exists()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(ConfigError, match="new cannot be written: Read-only file system"):
        check_output(tmp_path / "results" / "new")
