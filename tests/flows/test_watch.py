"""Batches that arrive in an inbox are learnt once; whoever should know is told."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from dynammo.errors import DataError
from flows.support.notify import tell
from flows.watch import watch
from tasks.support.version import find_learner
from tests.flows.project import OVERRIDES, TASKS


@pytest.fixture
def told() -> Iterator[list[bytes]]:
    """A webhook on this machine: what was posted to it."""
    posted: list[bytes] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYNAMMO_NOTIFY", f"json://127.0.0.1:{server.server_port}/hook")
        yield posted
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("prefect_server")
def test_what_arrives_is_learnt_once_and_refusals_are_told(
    here: Path,
    arrive: Any,
    told: list[bytes],
) -> None:
    for number, classes in enumerate(TASKS[:2], start=1):
        arrive(f"inbox/{number}", classes)
    arrive("inbox/3", TASKS[2])
    old = time.time() - 3600
    for path in (here / "inbox").rglob("*"):
        if "3" not in path.relative_to(here / "inbox").parts[0]:
            os.utime(path, (old, old))
    blind = {**OVERRIDES, "retention.test": "nothing"}
    made = watch("shapes", str(here / "inbox"), 10, blind)
    assert [own["version"] for own in made] == [1, 2]  # the third is still being copied
    assert watch("shapes", str(here / "inbox"), 10, blind) == []
    (message,) = told
    assert b"shapes: version 2 (2) is not champion" in message
    with pytest.raises(DataError, match="have been learnt before"):
        (here / "inbox/1/.learnt").unlink()
        watch("shapes", str(here / "inbox"), 0)
    assert len(told) == 2
    assert find_learner("shapes").numbers() == [1, 2]


def test_nobody_is_told_where_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DYNAMMO_NOTIFY", raising=False)
    assert not tell("title", "text")
