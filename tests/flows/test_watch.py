"""Batches that arrive in an inbox are learnt once; whoever should know is told."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from dynammo.errors import DataError
from flows.support.notify import tell
from flows.watch import watch
from tasks.inbox import FolderInbox, S3Inbox
from tasks.support.version import find_learner
from tests.flows.test_learn import OVERRIDES, TASKS


class Bucket:
    """As much of an S3 client as an inbox needs, in memory."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = dict(objects)

    def get_paginator(self, _: str) -> Bucket:
        return self

    def paginate(self, Bucket: str, Prefix: str) -> list[dict[str, Any]]:
        keys = [key for key in sorted(self.objects) if key.startswith(Prefix)]
        at = datetime(2027, 4, 1, tzinfo=UTC)
        entries = [{"Key": key, "LastModified": at} for key in keys]
        return [{"Contents": entries[:1]}, {"Contents": entries[1:]}, {}]

    def download_file(self, bucket: str, key: str, target: str) -> None:
        Path(target).write_bytes(self.objects[key])

    def put_object(self, Bucket: str, Key: str, Body: bytes) -> None:
        self.objects[Key] = Body


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


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        FolderInbox(tmp_path / "absent")


def test_an_s3_prefix_is_an_inbox(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket({"in/b/a/1.png": b"1", "in/b/a/2.png": b"2", "in/c/a/3.png": b"3", "x/4": b""})
    monkeypatch.setattr("boto3.client", lambda _: bucket)
    inbox = S3Inbox("s3://bucket/in/")
    assert list(inbox.arrived()) == ["b", "c"]
    with inbox.here("b") as folder:
        assert {path.name: path.read_bytes() for path in (folder / "a").iterdir()} == {
            "1.png": b"1",
            "2.png": b"2",
        }
    assert not folder.exists()
    inbox.done("b")
    assert list(inbox.arrived()) == ["c"]


def test_an_object_that_leads_out_of_its_batch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boto3.client", lambda _: Bucket({"b/../../../etc/1": b""}))
    with pytest.raises(DataError, match="leads out of its batch"), S3Inbox("s3://bucket").here("b"):
        pass


def test_nobody_is_told_where_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DYNAMMO_NOTIFY", raising=False)
    assert not tell("title", "text")
