"""Exchange two folders in one step, so that there is no moment without either."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

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
