"""The Prefect server that a command starts for itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from flows.command import __file__ as command

CODE = """
import httpx
from prefect.settings import PREFECT_API_URL
from flows.cli import server
server.ready()
first = PREFECT_API_URL.value()
server.ready()  # a second flow of this process finds the same one
assert PREFECT_API_URL.value() == first and first.startswith("http://127.0.0.1:")
assert httpx.get(first + "/health").json() is True
print(first)
"""


def test_the_server_lives_as_long_as_the_command(tmp_path: Path, prefect_database: Path) -> None:
    shutil.copy(prefect_database, tmp_path / "prefect.db")
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=environment,
        cwd=Path(command).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(httpx.ConnectError):
        httpx.get(done.stdout.strip() + "/health")


ENDS = """
import atexit, os, sys, threading, time
from flows import cli
from flows.command import app
def command_line():
    atexit.register(print, "registered")
    threading.Thread(target=time.sleep, args=[60], daemon=True, name="Prefect").start()
    threading.Thread(target=lambda: (time.sleep(0.2), print("joined"))).start()
    print("said")
    {end}
cli.app = command_line
class Doomed:
    def __del__(self, leave=os._exit):
        leave(139)  # as what happens when the interpreter is taken down
sys.doomed = Doomed()
app()
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [("sys.exit(3)", 3), ("sys.exit()", 0), ("sys.exit('no')", 1), ("pass", 0), ("1 / 0", 1)],
)
def test_a_process_with_a_server_ends_before_its_interpreter_is_taken_down(
    end: str, status: int
) -> None:
    """With its status, after all threads that are waited for, and with all that was said."""
    code = ENDS.format(end=end)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(command).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (status, ["said", "joined", "registered"])
    assert ("ZeroDivisionError" in done.stderr) == (end == "1 / 0")
