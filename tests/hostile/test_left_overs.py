"""What a kill -9 leaves is cleared away by the next start, and what is in use is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus

from dynammo.config import load_config
from dynammo.learner.folder import LearnerFolder
from tasks.publish import replaced_folder
from tasks.publish_version import _write_model
from tasks.support.exchange import remove_drafts
from tasks.support.mlflow import runs as mlflow_runs
from tasks.support.mlflow.runs import PROCESS, open_runs, tracking_uri
from tasks.support.processes import has_ended, this_process
from tasks.support.sweep import end_orphans, remove_stale

CONFIG = load_config(None, {"data.name": "skin8"})
ROOT = Path(__file__).parents[2]


def killed_process() -> str:
    """The name of a process that was killed with kill -9."""
    code = (
        "import os, signal; from tasks.support.processes import this_process\n"
        "print(this_process(), flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def test_a_process_is_known_to_live_or_to_have_ended() -> None:
    assert not has_ended(this_process())
    assert has_ended(killed_process())
    machine, pid, began = this_process().rsplit(" ", 2)
    assert has_ended(f"{machine} {pid} {int(began) - 100}")  # its number was given again
    for unknown in ("", "a b", f"elsewhere {2**22 + 1} 1", f"{machine} x 1"):
        assert not has_ended(unknown)


def test_mlflow_runs_of_a_killed_process_are_ended_and_others_are_not(
    tracking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = killed_process()
    mine = open_runs(CONFIG, "mine", {"hash": "0"}, ["merged"])
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_runs, "this_process", lambda: gone)
        theirs = open_runs(CONFIG, "theirs", {"hash": "0"}, ["merged"])
        finished = open_runs(CONFIG, "finished", {"hash": "0"}, ["merged"])
        mlflow_runs.finish_runs(finished)
    client = MlflowClient(tracking_uri())
    models = [
        client.create_logged_model(theirs["experiment_id"], source_run_id=own["parent"]).model_id
        for own in (theirs, mine)
    ]
    unknown = client.create_run(mine["experiment_id"]).info.run_id  # another program's

    assert set(end_orphans()) == {theirs["parent"], *theirs["children"].values()}
    assert end_orphans() == []
    expected = {
        theirs["parent"]: "KILLED",
        theirs["children"]["merged"]: "KILLED",
        mine["parent"]: "RUNNING",
        finished["parent"]: "FINISHED",
        unknown: "RUNNING",
    }
    assert {run: client.get_run(run).info.status for run in expected} == expected
    statuses = [client.get_logged_model(model).status for model in models]
    assert statuses == [LoggedModelStatus.FAILED, LoggedModelStatus.PENDING]

    # Taken up again they run, and belong to the process that took them up.
    assert open_runs(CONFIG, "theirs", {"hash": "0"}, ["merged"]) == theirs
    run = client.get_run(theirs["parent"])
    assert (run.info.status, run.data.tags[PROCESS]) == ("RUNNING", this_process())
    assert end_orphans() == []


def test_no_database_is_made_to_look_for_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert end_orphans() == []
    assert not list(tmp_path.iterdir())


def test_a_draft_that_was_left_is_removed_and_one_in_use_is_not(tmp_path: Path) -> None:
    target = tmp_path / "shapes"
    left = tmp_path / ".shapes.abc_1234"
    others = [tmp_path / ".shapes.v2.abcd1234", tmp_path / ".shapes.short", tmp_path / "shapes"]
    for folder in (left, *others):
        (folder / "figures").mkdir(parents=True)
    (tmp_path / ".shapes.link1234").symlink_to(others[0])
    with replaced_folder(target) as filled:
        assert remove_drafts(target) == [left]
        assert filled.is_dir() and not left.exists()
    assert all(folder.is_dir() for folder in others)
    assert target.is_dir() and not (target / "figures").exists()


def test_a_draft_of_a_learners_model_is_removed_when_the_model_is_next_looked_at(
    tmp_path: Path,
) -> None:
    folder = LearnerFolder(tmp_path, "it")
    folder.commit({}, champion=False)
    draft = folder.path / ".model.abcd1234"
    (draft / "model").mkdir(parents=True)
    _write_model(folder)
    assert not draft.exists()


def test_results_that_a_killed_publishing_had_set_aside_come_back(tmp_path: Path) -> None:
    """Between the two renames of a system that cannot exchange folders."""
    aside = tmp_path / ".shapes.abcd1234" / "shapes"
    aside.mkdir(parents=True)
    (aside / "metrics.json").write_text("old")
    (tmp_path / ".shapes.zzzz9999").mkdir()
    remove_drafts(tmp_path / "shapes")
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    assert (tmp_path / "shapes" / "metrics.json").read_text() == "old"


def test_temporary_files_go_after_an_hour(tmp_path: Path) -> None:
    old, young = tmp_path / ".head-1.json.abcd1234", tmp_path / ".head-2.json.abcd1234"
    kept = tmp_path / "head-1.json"
    folder, busy = tmp_path / ".store.abcd1234", tmp_path / ".store.bcde2345"
    for path in (old, young, kept):
        path.write_text("{}")
    for path in (folder, busy):
        path.mkdir()
        (path / "rows.npy").touch()
    past = time.time() - 2 * 3600
    for path in (old, kept, folder / "rows.npy", folder, busy):
        os.utime(path, (past, past))
    assert set(remove_stale(tmp_path)) == {old, folder}
    assert {path.name for path in tmp_path.iterdir()} == {young.name, kept.name, busy.name}
    assert remove_stale(tmp_path / "missing") == []
