"""Batches are found where they arrive, and fetched from there and nowhere else."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dynammo.errors import DataError
from tasks.inbox import FolderInbox, S3Inbox


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
