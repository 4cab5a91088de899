"""What the command `dynammo` starts, also where only the library is installed."""

import atexit
import gc
import logging
import os
import sys
import threading
from contextlib import suppress

from dynammo.extras import MissingExtra, needs

_status = 1  # of an end that is no SystemExit


def app() -> None:
    """Run the command line; without the extra "pipeline" say in one line what is missing."""
    global _status
    # Registered first, so that it is called last.
    atexit.register(_leave)
    try:
        # Whatever cannot be found: the library's own packages are there if this is.
        with needs("pipeline"):
            from flows.cli import app as command_line
    except MissingExtra as error:
        sys.exit(f"error: {error}")
    # At the end nothing is left to collect, and looking for it through all libraries takes seconds.
    atexit.register(gc.freeze)
    try:
        command_line()
    except SystemExit as end:
        _status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    _status = 0


def _leave() -> None:
    """End the process where Prefect's server is a thread of it (`flows.cli.server`).

    Its store in memory (burner-redis 0.1.7) has threads that call Python. Once the interpreter is
    taken down under them, the process dies of SIGSEGV now and then, with all its work done.
    """
    if any(thread.name == "Prefect" for thread in threading.enumerate()):
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
        os._exit(_status)
