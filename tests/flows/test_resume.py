"""A killed run, started again, goes on where it was and ends as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from prefect.settings import PREFECT_API_URL

from tests.flows.project import Project, states, steps

ROOT = Path(__file__).parents[2]


def start(
    project: Project, kill_at: str | None = None, by: signal.Signals = signal.SIGKILL
) -> list[str]:
    """Run the flow in a process of its own; kill it when its log has a text.

    Where SIGTERM ends it, it has a server of its own, which must end, too.

    Returns:
        The lines of its log.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "DYNAMMO_HOME": str(project.folder / ".dynammo"),
        "PREFECT_HOME": str(project.folder / "prefect"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{project.folder / 'mlflow.db'}",
    }
    if by != signal.SIGTERM:
        environment["PREFECT_API_URL"] = PREFECT_API_URL.value()
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", "from flows.cli import app; app()", "run"),
            *("--params", str(project.params)),
        ],
        cwd=project.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if kill_at and kill_at in line:
                os.kill(process.pid, by)
                kill_at = None
        assert kill_at is None, "".join(lines)
        if by == signal.SIGTERM:
            # 1 where the signal broke off a call whose own error is what is told.
            assert process.wait() in (128 + signal.SIGTERM, 1)
            with pytest.raises(ProcessLookupError):
                os.killpg(process.pid, 0)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return lines


@pytest.mark.timeout(600)
def test_a_run_killed_twice_ends_as_one_that_was_not(
    finished: Project, new: Project, prefect_database: Path
) -> None:
    (new.folder / "prefect").mkdir()
    shutil.copy(prefect_database, new.folder / "prefect" / "prefect.db")
    attempts = []
    for moment, by in (
        ("Task run 'train adapter 2/3' - 24 images", signal.SIGKILL),  # as it trains
        ("Task run 'train adapter 2/3' - Finished", signal.SIGTERM),  # as merging begins
        (None, signal.SIGKILL),
    ):
        assert not new.results.exists()
        attempts.append(start(new, moment, by))
        ended = "Flow run 'shapes best seed 3' - Finished in state Completed()"
        assert any(ended in line for line in attempts[-1]) == (moment is None)

    same = (new.results / "metrics.json").read_bytes()
    assert same == (finished.results / "metrics.json").read_bytes()

    first, second, third = (steps(states(lines)) for lines in attempts)
    # The bare backbone's features serve all tasks: found already in a run that nobody killed.
    # A step that SIGTERM meets as it finishes says so twice: attempts are counted, not lines.
    completed = {
        name: sum("Completed" in attempt.get(name, []) for attempt in (first, second, third))
        for name in third
        if not name.startswith("extract test features: frozen")
    }
    assert "Completed" in first["train adapter 1/3"]
    assert {name for name, times in completed.items() if times > 1} == set()
    for before, after in ((first, second), (first, third), (second, third)):
        done = {name for name in set(before) & set(after) if before[name] != ["Crashed"]}
        assert {name for name in done if after[name] != ["Cached"]} == set()
    assert {"train adapter 1/3", "merge adapters 1/3", "evaluate merged 1/3"} <= set(first)
    assert third["train adapter 2/3"] == ["Cached"]
    assert third["train adapter 3/3"] == ["Completed"]

    client = MlflowClient(f"sqlite:///{new.folder / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'dynammo-shapes'")
    tracked = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in tracked] == ["FINISHED"] * 4
    for run in tracked:
        points = client.get_metric_history(run.info.run_id, "accuracy")
        assert len({point.step for point in points}) == len(points)
