"""Machines that do a step together: here a thread stands for each of the others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from socket import gethostname
from threading import Thread
from typing import Any

import pytest

from dynammo.errors import DynammoError
from dynammo.processes import INTERFACE, LOOPBACK, Machines
from tasks import machines
from tasks.machines import Work, accept, invite
from tasks.support import caching

CODE = "dynammo.seeds"
ARGUMENTS = {"number": 3, "names": ["amber", "birch"]}


class Enough(BaseException):
    """Ends a machine that would help for ever."""


class Helper:
    """Another machine: what it was asked to do, and what it said."""

    def __init__(
        self, code: str = CODE, problem: str | None = None, times: int = 1, dies: bool = False
    ) -> None:
        self.asked: list[tuple[dict[str, Any], Machines]] = []
        self.said: list[str] = []
        self.problem, self.times, self.dies = problem, times, dies
        self.thread = Thread(target=self._run, args=(code,), daemon=True)
        self.thread.start()

    def _run(self, code: str) -> None:
        with suppress(Enough):
            accept(code, self._prepare, self._say)

    def _prepare(self, arguments: dict[str, Any]) -> Work:
        if self.problem is not None:
            self.problem, problem = None, self.problem
            raise DynammoError(problem)

        def work(place: Machines) -> None:
            self.asked.append((arguments, place))
            if self.dies:
                raise Enough

        return work

    def _say(self, line: str) -> None:
        self.said.append(line)
        if line.startswith("done") and len(self.asked) == self.times:
            raise Enough

    def wait(self) -> None:
        """Until it has done all that it does."""
        self.thread.join(timeout=60)
        assert not self.thread.is_alive()


@pytest.fixture(autouse=True)
def meetings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(INTERFACE, LOOPBACK)
    monkeypatch.setattr(machines, "MEETINGS", tmp_path / "meetings")
    monkeypatch.setattr(machines, "_PAUSE", 0.01)
    monkeypatch.setattr(machines, "_PATIENCE", 60)
    yield tmp_path / "meetings"


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def meet(
    count: int, *helpers: Helper, code: str = CODE, say: Callable[[str], None] = lambda _: None
) -> Machines:
    """Invite; what is to be done together lasts until each helper has done one thing more."""
    done = [len(helper.asked) for helper in helpers]
    with invite(count, code, ARGUMENTS, say) as found:
        until(lambda: all(len(h.asked) > n for h, n in zip(helpers, done, strict=True)))
        return found


def test_a_single_machine_invites_nobody(meetings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(INTERFACE)
    assert meet(1) == Machines(0, 1, None)
    assert not meetings.exists()


def test_machines_meet_each_with_a_place_of_its_own(meetings: Path) -> None:
    helpers, said = [Helper(), Helper()], list[str]()
    mine = meet(3, *helpers, say=said.append)
    for helper in helpers:
        helper.wait()
    assert said == ["train.machines is 3: waiting for 2 more to run `dynammo join`"]
    assert (mine.place, mine.total) == (0, 3)
    found = [asked for helper in helpers for asked in helper.asked]
    assert [arguments for arguments, _ in found] == [ARGUMENTS] * 2
    assert sorted(place for _, place in found) == [
        Machines(1, 3, mine.meeting, mine.lost),
        Machines(2, 3, mine.meeting, mine.lost),
    ]
    assert list(meetings.glob("*/invitation.json")) == []


def test_a_machine_helps_again_and_again() -> None:
    helper = Helper(times=2)
    first, second = meet(2, helper), meet(2, helper)
    helper.wait()
    assert [place.meeting for _, place in helper.asked] == [first.meeting, second.meeting]
    assert first.meeting != second.meeting


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("dynammo.errors", "it has another version of this project's code"),
        (CODE, "no such file: a.png"),
    ],
)
def test_why_a_machine_cannot_help_is_told_on_both(code: str, problem: str, meetings: Path) -> None:
    other = Helper(code, problem if code == CODE else None)
    with pytest.raises(DynammoError, match=f"cannot help: {problem}"):
        meet(2)
    until(lambda: f"error: {problem}" in other.said)
    assert list(meetings.glob("*/invitation.json")) == []
    meet(2, other, code=code)  # the next time it can
    other.wait()


def test_what_ends_one_machine_is_told_to_the_others(meetings: Path) -> None:
    helper = Helper(dies=True)
    with invite(2, CODE, ARGUMENTS, lambda _: None) as mine:
        helper.wait()
        assert mine.lost is not None
        assert mine.lost.read_text() == f"lost {gethostname()}: ended by Enough"

    helper = Helper(times=2)
    with (
        pytest.raises(DynammoError, match="the disk is full"),
        invite(2, CODE, ARGUMENTS, lambda _: None) as mine,
    ):
        until(lambda: len(helper.asked) > 0)
        raise DynammoError("the disk is full")
    ((_, place),) = helper.asked
    assert place.lost is not None
    assert place.lost.read_text() == f"lost {gethostname()}: the disk is full"
    meet(2, helper)  # an ended meeting keeps nobody from the next
    helper.wait()
    assert list(meetings.glob("*/invitation.json")) == []


def test_a_machine_that_is_ended_as_it_makes_ready_gives_its_place_back(meetings: Path) -> None:
    def ended(_: dict[str, Any]) -> Work:
        raise Enough

    (folder := meetings / "1-waiting").mkdir(parents=True)
    invitation = machines._invitation(2, machines._made_from(CODE), ARGUMENTS)
    (folder / "invitation.json").write_bytes(invitation)
    with pytest.raises(Enough):
        accept(CODE, ended, lambda _: None)
    assert [file.name for file in folder.iterdir()] == ["invitation.json"]
    # Where all have started meanwhile, the others are told.
    (folder / "start").touch()
    seat = machines._machines(folder, 1, 2)
    machines._leave(folder, seat, Enough())
    assert seat.lost is not None and "ended by Enough" in seat.lost.read_text()


def test_a_machine_whose_adapter_is_other_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machines._made_from(CODE)
    real = caching._code_hash

    def changed(module: str) -> str:
        return "another" if module == "dynammo.adapters.linear" else real(module)

    monkeypatch.setattr(caching, "_code_hash", changed)
    with pytest.raises(DynammoError, match="another version of this project's code"):
        machines._check_same(before, machines._made_from(CODE))


def test_what_dead_runs_left_is_removed_in_time(meetings: Path) -> None:
    waiting, trained, failed = (meetings / name for name in ("1-waiting", "2-trained", "3-failed"))
    for folder, *files in ((waiting,), (trained, "start"), (failed, "start", "lost")):
        folder.mkdir(parents=True)
        for name in ("invitation.json", *files):
            (folder / name).touch()
    machines._tidy(waiting)
    assert len(list(meetings.iterdir())) == 3  # none is old
    for folder in (waiting, trained, failed):
        os.utime(folder, (0, 0))
    (mine := meetings / "4-mine").mkdir()
    machines._tidy(mine)
    assert {folder.name for folder in meetings.iterdir()} == {"2-trained", "4-mine"}


def test_machines_that_do_not_come_are_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, meetings: Path
) -> None:
    monkeypatch.setattr(machines, "_PATIENCE", 0.1)
    with pytest.raises(DynammoError, match=r"of the 2 others 0 came within 0\.1 seconds"):
        meet(3)
    assert list(meetings.glob("*/invitation.json")) == []


def test_the_invitation_of_a_dead_run_holds_nobody_up(meetings: Path) -> None:
    invitation = machines._invitation(2, machines._made_from(CODE), {"number": 1})
    dead = meetings / "0-dead"
    dead.mkdir(parents=True)
    (dead / "invitation.json").write_bytes(invitation)
    helper = Helper()
    until((dead / "machine-1").exists)
    meet(2, helper)
    helper.wait()
    assert [arguments for arguments, _ in helper.asked] == [ARGUMENTS]
    assert [file.name for file in dead.iterdir()] == ["invitation.json"]


def test_an_interface_must_be_named(monkeypatch: pytest.MonkeyPatch, meetings: Path) -> None:
    monkeypatch.delenv(INTERFACE)
    with pytest.raises(DynammoError, match=r"set GLOO_SOCKET_IFNAME .*; here are: .*lo"):
        meet(2)
    with pytest.raises(DynammoError, match="set GLOO_SOCKET_IFNAME"):
        accept(CODE, lambda _: lambda _: None, lambda _: None)
    assert not meetings.exists()
