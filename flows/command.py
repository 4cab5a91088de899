"""What the command `dynammo` starts, also where only the library is installed."""

import atexit
import gc
import sys

from dynammo.extras import MissingExtra, needs


def app() -> None:
    """Run the command line; without the extra "pipeline" say in one line what is missing."""
    try:
        # Whatever cannot be found: the library's own packages are there if this is.
        with needs("pipeline"):
            from flows.cli import app as command_line
    except MissingExtra as error:
        sys.exit(f"error: {error}")
    # At the end nothing is left to collect, and looking for it through all libraries takes seconds.
    atexit.register(gc.freeze)
    command_line()
