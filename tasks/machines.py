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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

from dynammo.checkpoint import to_json, write_atomically
from dynammo.errors import DynammoError
from dynammo.processes import ALONE, Machines, interface
from tasks.caching import code_version
from tasks.workspace import HOME, versions

MEETINGS = HOME / "meetings"
_PATIENCE = 600  # seconds that the other machines have to come
_PAUSE = 0.2  # seconds between looks into the folder
_INVITATION = "invitation.json"
_LOST = "lost"
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
    for lost in MEETINGS.glob(f"*/{_LOST}"):
        if not (lost.parent / _INVITATION).exists():
            shutil.rmtree(lost.parent, ignore_errors=True)
    folder = MEETINGS / f"{time.time_ns()}-{uuid4().hex[:8]}"  # the newest is the last by name
    write_atomically(folder / _INVITATION, _invitation(count, module, arguments))
    try:
        say(f"train.machines is {count}: waiting for {count - 1} more to run `dynammo join`")
        _wait_until_ready(folder, count)
        (folder / "start").touch()
        with _telling(folder):
            yield _machines(folder, 0, count)
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
    say(f"waiting for invitations in {MEETINGS}, over {interface()}; Ctrl-C ends this")
    while True:
        time.sleep(_PAUSE)
        if (folder := _newest()) is None or (place := _take_place(folder)) is None:
            continue
        try:
            _help(folder, place, module, prepare, say)
        except DynammoError as error:
            say(f"error: {error}")


def _machines(folder: Path, place: int, count: int) -> Machines:
    return Machines(place, count, folder / "meeting", folder / _LOST)


@contextmanager
def _telling(folder: Path) -> Iterator[None]:
    """What ends the work here is told to the machines that would wait for this one."""
    try:
        yield
    except BaseException as error:  # an interruption, too
        reason = (
            str(error) if isinstance(error, DynammoError) else f"ended by {type(error).__name__}"
        )
        with suppress(OSError):  # the others may have gone
            if not (folder / _LOST).exists():  # this may be but what follows from another's
                text = f"lost {socket.gethostname()}: {reason}"
                write_atomically(folder / _LOST, text.encode())
        raise


def _invitation(count: int, module: str, arguments: dict[str, Any]) -> bytes:
    document = {"machines": count, "arguments": arguments, "made from": _made_from(module)}
    return to_json(document)


def _take_place(folder: Path) -> int | None:
    with suppress(FileNotFoundError):  # it may be withdrawn at any moment
        for place in range(1, _read(folder)["machines"]):
            with suppress(FileExistsError):
                (folder / f"machine-{place}").touch(exist_ok=False)
                return place
    return None


def _help(
    folder: Path, place: int, module: str, prepare: Callable[[dict[str, Any]], Work], say: Say
) -> None:
    def answer(text: str) -> None:
        with suppress(FileNotFoundError):
            (folder / f"machine-{place}").write_text(text, encoding="utf-8")

    try:
        invitation = _read(folder)
    except FileNotFoundError:
        return
    try:
        _check_same(invitation["made from"], _made_from(module))
        work = prepare(invitation["arguments"])
    except Exception as error:
        answer(f"{socket.gethostname()} cannot help: {error}")
        raise
    answer(_READY)
    try:
        started = _wait_for_start(folder)
    except BaseException:  # it was ended as it waited
        (folder / f"machine-{place}").unlink(missing_ok=True)
        raise
    if started:
        say(f"machine {place + 1} of {invitation['machines']}")
        with _telling(folder):
            work(_machines(folder, place, invitation["machines"]))
        say("done; waiting for the next invitation")
    else:
        (folder / f"machine-{place}").unlink(missing_ok=True)


def _wait_for_start(folder: Path) -> bool:
    """Not where it is withdrawn, or its run is dead and there is a newer one."""
    while not (started := (folder / "start").exists()) and folder == _newest():
        time.sleep(_PAUSE)
    return started


def _read(folder: Path) -> dict[str, Any]:
    invitation: dict[str, Any] = json.loads((folder / _INVITATION).read_text(encoding="utf-8"))
    return invitation


def _newest() -> Path | None:
    folders = [file.parent for file in MEETINGS.glob(f"*/{_INVITATION}")]
    return max(folders, default=None)


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
    return {"this project's code": code_version(module), **versions()}
