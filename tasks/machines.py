"""How several machines meet to do a step together.

The machine that runs the pipeline invites, in a folder that all of them see (`MEETINGS`, inside
DYNAMMO_HOME); on each of the others, `dynammo join` accepts. In the folder of an invitation:

    invitation.json   the step's arguments, how many machines it takes, the code and its versions
    machine-1, ...    the places, each made by the machine that takes it: `ready`, or what is wrong
    start             made when all are ready
    meeting           of torch: through it the processes learn each other's addresses
    lost              made by a machine that failed since the start: what it failed of
"""

from __future__ import annotations

import json
import shutil
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

from dynammo.adapters import ADAPTERS
from dynammo.checkpoint import to_json, write_atomically
from dynammo.errors import DynammoError
from dynammo.processes import ALONE, Machines, interface
from tasks.support.caching import code_version
from tasks.support.workspace import HOME, versions

MEETINGS = HOME / "meetings"
_PATIENCE = 600  # seconds that the other machines have to come
_PAUSE = 0.2  # seconds between looks into the folder
_INVITATION = "invitation.json"
_LOST = "lost"
_START = "start"
_READY = "ready"

Say = Callable[[str], None]
Work = Callable[[Machines], object]


@contextmanager
def invite(count: int, module: str, arguments: dict[str, Any], say: Say) -> Iterator[Machines]:
    """Find other machines for a step, which is then to be done inside this context.

    Args:
        count: how many machines it takes, with this one; 1 invites nobody.
        module: whose code the step runs.
        arguments: the step's; plain values.
        say: called with a line for the log.

    Raises:
        DynammoError: no interface is named; a machine cannot help; or they did not come in time.
    """
    if count == 1:
        yield ALONE
        return
    interface()
    folder = MEETINGS / f"{time.time_ns()}-{uuid4().hex[:8]}"  # the newest is the last by name
    write_atomically(folder / _INVITATION, _invitation(count, _made_from(module), arguments))
    _tidy(folder)
    try:
        say(f"train.machines is {count}: waiting for {count - 1} more to run `dynammo join`")
        _wait_until_ready(folder, count)
        with _telling(machines := _machines(folder, 0, count)):
            (folder / _START).touch()
            yield machines
    finally:
        (folder / _INVITATION).unlink(missing_ok=True)  # first, lest another place be taken
        if not (folder / _LOST).exists():  # that, the others have yet to read
            shutil.rmtree(folder, ignore_errors=True)


def accept(module: str, prepare: Callable[[dict[str, Any]], Work], say: Say) -> NoReturn:
    """Help whichever machine invites, again and again, until the program is ended.

    Args:
        module: whose code the step runs.
        prepare: from the invitation's arguments to the work, which is called with this machine's
            place once all machines are ready.
        say: called with a line for the terminal: what it waits for, and what failed.

    Raises:
        DynammoError: no interface is named.
    """
    made_from = _made_from(module)  # of the code that is loaded; files may change
    say(f"waiting for invitations in {MEETINGS}, over {interface()}; Ctrl-C ends this")
    while True:
        time.sleep(_PAUSE)
        if (folder := _newest()) is None or (taken := _take_place(folder)) is None:
            continue
        try:
            _help(folder, *taken, made_from, prepare, say)
        except DynammoError as error:
            say(f"error: {error}")
        except Exception:  # a fault of the code: shown as such, and no end of the help
            say(traceback.format_exc())


def _machines(folder: Path, place: int, count: int) -> Machines:
    return Machines(place, count, folder / "meeting", folder / _LOST)


@contextmanager
def _telling(machines: Machines) -> Iterator[None]:
    """What ends the work here is told to the machines that would wait for this one."""
    try:
        yield
    except BaseException as error:
        machines.tell(error)
        raise


def _invitation(count: int, made_from: dict[str, str], arguments: dict[str, Any]) -> bytes:
    return to_json({"machines": count, "arguments": arguments, "made from": made_from})


def _tidy(mine: Path) -> None:
    """Remove what dead runs left; a run that has started may take as long as it likes."""
    now = mine.stat().st_mtime  # by the clock of the file system, as those of the others
    for folder in MEETINGS.iterdir():
        with suppress(FileNotFoundError):
            over = (folder / _LOST).exists() or not (folder / _START).exists()
            if over and folder.stat().st_mtime < now - 2 * _PATIENCE:
                shutil.rmtree(folder, ignore_errors=True)


def _take_place(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """A place that was free, and the invitation."""
    with suppress(FileNotFoundError):  # it may be withdrawn at any moment
        invitation = json.loads((folder / _INVITATION).read_text(encoding="utf-8"))
        for place in range(1, invitation["machines"]):
            with suppress(FileExistsError):
                (folder / f"machine-{place}").touch(exist_ok=False)
                return place, invitation
    return None


def _help(
    folder: Path,
    place: int,
    invitation: dict[str, Any],
    made_from: dict[str, str],
    prepare: Callable[[dict[str, Any]], Work],
    say: Say,
) -> None:
    def answer(text: str) -> None:
        with suppress(FileNotFoundError):  # it may be withdrawn at any moment
            (folder / f"machine-{place}").write_text(text, encoding="utf-8")

    machines = _machines(folder, place, invitation["machines"])
    try:
        _check_same(invitation["made from"], made_from)
        work = prepare(invitation["arguments"])
        answer(_READY)
        started = _wait_for_start(folder)
    except Exception as error:
        answer(f"{socket.gethostname()} cannot help: {error}")
        raise
    except BaseException as error:  # this machine is wanted no more
        _leave(folder, machines, error)
        raise
    if not started:
        _leave(folder, machines, DynammoError("it left for a newer run"))
        return
    say(f"machine {place + 1} of {machines.total}")
    with _telling(machines):
        work(machines)
    say("done; waiting for the next invitation")


def _leave(folder: Path, machines: Machines, why: BaseException) -> None:
    """Give the place to another machine; where all have started meanwhile, it is too late."""
    (folder / f"machine-{machines.place}").unlink(missing_ok=True)
    if (folder / _START).exists():
        machines.tell(why)


def _wait_for_start(folder: Path) -> bool:
    """Not where it is withdrawn, or its run is dead and there is a newer one."""
    while True:
        waiting = folder == _newest()  # not when it has started: hence looked at first
        if (folder / _START).exists():
            return True
        if not waiting:
            return False
        time.sleep(_PAUSE)


def _newest() -> Path | None:
    """The last invitation that has not started."""
    folders = [file.parent for file in MEETINGS.glob(f"*/{_INVITATION}")]
    return max((f for f in folders if not (f / _START).exists()), default=None)


def _wait_until_ready(folder: Path, count: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    ready = 0
    while time.monotonic() < deadline:
        answers = []
        for place in range(1, count):
            with suppress(FileNotFoundError):
                answers.append((folder / f"machine-{place}").read_text(encoding="utf-8"))
        for problem in set(answers) - {_READY, ""}:
            raise DynammoError(problem)
        ready = answers.count(_READY)
        if ready == count - 1:
            return
        time.sleep(_PAUSE)
    raise DynammoError(
        f"train.machines is {count}, but of the {count - 1} others {ready} came within "
        f"{_PATIENCE} seconds: run `dynammo join` on each of them, with DYNAMMO_HOME on the same "
        "file system"
    )


def _check_same(theirs: dict[str, str], mine: dict[str, str]) -> None:
    different = [name for name in mine if mine[name] != theirs.get(name)]
    if different:
        raise DynammoError(f"it has another version of {', '.join(different)}")


def _made_from(module: str) -> dict[str, str]:
    """What must be the same on all machines, lest they compute different things."""
    adapters = [ADAPTERS.module(name) for name in ADAPTERS]
    return {"this project's code": code_version(module, *adapters), **versions()}
