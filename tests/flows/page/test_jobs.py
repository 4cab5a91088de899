"""One command at a time, its lines, its end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from flows.page import jobs as page_jobs
from flows.page.jobs import Busy, Jobs


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    """Runs its arguments as a program."""
    monkeypatch.setattr(page_jobs, "_COMMAND", "import sys; exec(sys.argv[1])")
    jobs = Jobs()
    yield jobs
    jobs.close()


def ended(jobs: Jobs) -> dict[str, object]:
    end = time.monotonic() + 30
    while jobs.state()["status"] is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    return jobs.state()


def test_before_the_first_there_is_nothing(jobs: Jobs) -> None:
    assert jobs.state() == {"command": "", "lines": [], "status": 0}


def test_lines_and_status(jobs: Jobs) -> None:
    jobs.start(["print('\\x1b[31mred\\x1b[0m\\n\\n'); import sys; sys.exit('error: no')"])
    state = ended(jobs)
    assert state["lines"] == ["red", "error: no"]
    assert state["status"] == 1
    jobs.start(["print(*range(300), sep='\\n')"])
    assert ended(jobs)["lines"] == [str(number) for number in range(100, 300)]


def test_one_at_a_time_until_it_is_stopped(jobs: Jobs) -> None:
    jobs.start(["import time; print('on', flush=True); time.sleep(60)"])
    with pytest.raises(Busy, match="is still running"):
        jobs.start(["print(1)"])
    while jobs.state()["lines"] != ["on"]:
        time.sleep(0.02)
    jobs.stop()
    assert ended(jobs)["status"] == -signal.SIGTERM
