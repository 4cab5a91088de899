"""The Prefect server that a command starts for itself."""

from __future__ import annotations

import os
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


def test_the_server_lives_as_long_as_the_command(tmp_path: Path) -> None:
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
