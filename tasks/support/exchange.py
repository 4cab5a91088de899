"""Exchange two folders in one step where the system can; where it cannot, a process that is killed
half-way loses neither.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RANDOM = r"[a-z0-9_]{8}"  # what tempfile appends to a prefix
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


def exchanged(one: Path, other: Path) -> bool:
    """Give each of two folders the other's name, at once.

    Python has no function for it, only Linux's C library (renameat2).

    Returns:
        False where the system or the file system cannot; nothing has changed then.
    """
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:  # an old C library
        return False
    names = os.fsencode(one), os.fsencode(other)
    failed = rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE))
    # Whatever the reason: the two renames that come instead tell it, if they fail as well.
    return not failed


def swap(fresh: Path, target: Path) -> None:
    """Give each of two folders the other's name.

    Where they cannot be exchanged, three renames do it: the target goes into a draft beside it,
    under its own name. A process killed in between leaves the draft, by which `remove_drafts` gives
    back what has no name then.
    """
    if exchanged(target, fresh):
        return
    draft = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    aside = draft / target.name
    with in_use(draft):
        os.replace(target, aside)
        try:
            os.replace(fresh, target)
        except OSError:
            os.replace(aside, target)
            draft.rmdir()
            raise
        os.replace(aside, fresh)
        draft.rmdir()


@contextmanager
def in_use(folder: Path) -> Iterator[bool]:
    """Hold a folder that is being filled; ends with the process, however it ends.

    Yields:
        Whether it is held now: not if another process does, or the file system cannot.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(handle)


def remove_drafts(target: Path, other: Path | None = None) -> list[Path]:
    """Remove the drafts that killed processes left beside a folder, unless one is still filled.

    What `swap` had set aside is put back where the target is missing; where it is there, and the
    `other` folder that it was swapped with is not, it gets that one's name.
    """
    pattern = re.compile(rf"\.{re.escape(target.name)}\.{RANDOM}")
    removed = []
    for draft in children(target.absolute().parent, pattern):
        if not draft.is_dir() or draft.is_symlink():
            continue
        with in_use(draft) as held:
            if not held:
                continue
            if (aside := draft / target.name).is_dir():
                missing = [own for own in (target, other) if own is not None and not own.exists()]
                if missing:
                    os.replace(aside, missing[0])
            shutil.rmtree(draft, ignore_errors=True)
            removed.append(draft)
    return removed


def children(folder: Path, name: re.Pattern[str]) -> list[Path]:
    """Those with such names; none where there is no folder."""
    try:
        return sorted(path for path in folder.iterdir() if name.fullmatch(path.name))
    except OSError:
        return []
