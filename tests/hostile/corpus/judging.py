"""A case, and the judgement of what came of it."""

from __future__ import annotations

import re
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mlflow.exceptions import MlflowException

from dynammo.errors import expected_line

SECONDS, MEGABYTES = 20, 2000  # that one bad input may take; a machine that is busy is forgiven
LINE = 1000  # characters of a clear line
REFUSED, HANDLED = "one clear line", "handled as documented"


class Case(NamedTuple):
    """A bad input.

    Attributes:
        group: what kind of input it is.
        name: what is bad about it.
        attempt: hands it in, in an empty folder.
        says: a regular expression that the line must hold; none where the input is to be handled,
            which `attempt` then asserts.
    """

    group: str
    name: str
    attempt: Callable[[Path], Any]
    says: str | None


class Fault(AssertionError):
    """Something other than a clear line, or than what is documented, came of a bad input."""


class _Hangs(BaseException):
    """Of no kind that anything catches."""


def judge(case: Case, folder: Path) -> str:
    """Try a case; how it ended.

    Raises:
        Fault: silently, with an error that nobody expects, with more than a line, or not at all.
    """
    try:
        with limits(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # libraries' remarks on odd values
            case.attempt(folder)
    except _Hangs:
        raise Fault(f"it took more than {SECONDS} s") from None
    except AssertionError as error:
        raise Fault(f"not handled as documented: {error}") from error
    except Exception as error:
        lines = told(error)
        if not lines:
            raise Fault(f"{type(error).__name__}: {error}"[:500]) from error
        if case.says is None:
            raise Fault(f"refused, but to be handled: {lines}") from error
        check(lines, case.says)
        return REFUSED
    if case.says is not None:
        raise Fault("accepted without a word")
    return HANDLED


def told(error: Exception) -> list[str]:
    """What a user is told, a line a problem; nothing of a bug."""
    if isinstance(error, MlflowException):
        return [error.message] if error.get_http_status_code() == 400 else []
    if isinstance(error, MemoryError | RecursionError):
        return []  # its line is true, but says nothing of the input
    line = expected_line(error)
    return getattr(error, "problems", [line]) if line else []


def check(lines: list[str], says: str) -> None:
    """Each is one line, short, and can be printed; one says what is wrong."""
    for line in lines:
        if "\n" in line or "Traceback" in line:
            raise Fault(f"more than a line: {line[:500]!r}")
        if len(line) > LINE:
            raise Fault(f"{len(line)} characters: {line[:200]!r}")
    if not any(re.search(says, line) for line in lines):
        raise Fault(f"{lines} do not say {says!r}")


@contextmanager
def limits() -> Iterator[None]:
    """An end after some seconds, and at so much more memory than there is in use now."""

    def late(*_: object) -> None:
        raise _Hangs

    was = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEGABYTES * 2**20
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (most, was[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, was)
