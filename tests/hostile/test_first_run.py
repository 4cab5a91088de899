"""A first run that is killed while MLflow's database is made, and two first runs at once."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tasks.support.mlflow.runs import TrackingError, finish_run, open_run

ROOT = Path(__file__).parents[2]
FIRST_RUN = """
import sys
import signal

from tasks.support.mlflow.runs import finish_run, open_run
# As in a terminal, also where the tests run in the background, with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
print("making", flush=True)
finish_run(open_run("first", "key", "a run", "", {}), {}, failed=False)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    """What a first run does in MLflow, in a process of its own and in an empty folder."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
    }
    return subprocess.Popen(
        [sys.executable, "-c", FIRST_RUN],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_here(folder: Path) -> None:
    """The same in this process, for there is nothing to kill: an interpreter's start takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        finish_run(open_run("first", "key", "a run", "", {}), {}, failed=False)


def runs_in(folder: Path) -> int:
    connection = sqlite3.connect(folder / "mlflow.db")
    (count,) = connection.execute("SELECT count(*) FROM runs").fetchone()
    connection.close()
    assert isinstance(count, int)
    return count


# SIGTERM ends Python as SIGKILL does, at once; only after SIGINT does it clean up.
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT], ids=lambda s: s.name)
def test_a_first_run_killed_as_the_database_is_made_does_not_spoil_the_next(
    tmp_path: Path, by: signal.Signals
) -> None:
    process = start(tmp_path)
    tables = tmp_path / ".mlflow.db.new" / "mlflow.db"
    # Some of the tables are there, and not all.
    while not (tables.is_file() and tables.stat().st_size > 100_000):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    # Again and again: Python drops a KeyboardInterrupt that comes in a finaliser.
    while process.poll() is None:
        process.send_signal(by)
        time.sleep(0.05)
    process.communicate()
    assert process.returncode != 0
    assert not (tmp_path / "mlflow.db").exists()
    run_here(tmp_path)
    assert runs_in(tmp_path) == 1
    assert not tables.parent.exists()


def test_two_first_runs_at_once_both_record(tmp_path: Path) -> None:
    both = [start(tmp_path), start(tmp_path)]
    for process in both:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    assert runs_in(tmp_path) in (1, 2)  # of one key: the second may find the first's


def test_a_database_left_half_made_by_an_older_version_is_made_anew(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "mlflow.db")
    connection.execute("CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY)")
    connection.execute("CREATE TABLE datasets (dataset_uuid TEXT PRIMARY KEY)")
    connection.close()
    run_here(tmp_path)
    assert runs_in(tmp_path) == 1


def test_another_programs_tables_are_not_replaced(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "mlflow.db")
    connection.execute("CREATE TABLE patients (name TEXT)")
    connection.execute("INSERT INTO patients VALUES ('Ada')")
    connection.commit()
    connection.close()
    with suppress(TrackingError):
        run_here(tmp_path)
    connection = sqlite3.connect(tmp_path / "mlflow.db")
    assert connection.execute("SELECT name FROM patients").fetchall() == [("Ada",)]
    connection.close()
