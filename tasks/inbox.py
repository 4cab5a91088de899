"""Where batches arrive: a folder, or a prefix in an S3 store."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from prefect import task

from dynammo.errors import DataError

DONE = ".learnt"  # an empty file in a batch that was learnt


class Inbox(Protocol):
    """Where batches arrive, a folder each."""

    def arrived(self) -> dict[str, float]:
        """Batches that were not learnt yet, with when each last changed, in seconds."""
        ...

    @contextmanager
    def here(self, batch: str) -> Iterator[Path]:
        """The batch as a folder on this machine, for the time being."""
        ...

    def done(self, batch: str) -> None:
        """Mark it as learnt."""
        ...


class FolderInbox:
    """A folder of folders."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(f"{root}: no such folder")
        self.root = root

    def arrived(self) -> dict[str, float]:
        """See `Inbox`."""
        return {
            folder.name: max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
            for folder in sorted(self.root.iterdir())
            if folder.is_dir() and folder.name[0] != "." and not (folder / DONE).exists()
        }

    @contextmanager
    def here(self, batch: str) -> Iterator[Path]:
        """See `Inbox`."""
        yield self.root / batch

    def done(self, batch: str) -> None:
        """See `Inbox`."""
        (self.root / batch / DONE).touch()


class S3Inbox:
    """Prefixes below a prefix, `s3://bucket/inbox/2027-04/naevus/1.jpg`; `AWS_ENDPOINT_URL` and the
    like say where the store is.
    """

    def __init__(self, uri: str) -> None:
        import boto3

        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self.prefix = prefix.rstrip("/") + "/" if prefix else ""
        self.client: Any = boto3.client("s3")

    def _objects(self, prefix: str) -> Iterator[dict[str, Any]]:
        pages = self.client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.bucket, Prefix=prefix):
            yield from page.get("Contents", [])

    def arrived(self) -> dict[str, float]:
        """See `Inbox`."""
        found: dict[str, float] = {}
        done = set()
        for entry in self._objects(self.prefix):
            batch, _, rest = entry["Key"].removeprefix(self.prefix).partition("/")
            if rest == DONE:
                done.add(batch)
            elif rest:
                found[batch] = max(found.get(batch, 0.0), entry["LastModified"].timestamp())
        return {name: at for name, at in sorted(found.items()) if name not in done}

    @contextmanager
    def here(self, batch: str) -> Iterator[Path]:
        """See `Inbox`."""
        with tempfile.TemporaryDirectory(prefix="dynammo-inbox-") as temporary:
            root = (Path(temporary) / batch).resolve()
            for entry in self._objects(f"{self.prefix}{batch}/"):
                target = (root / entry["Key"].removeprefix(f"{self.prefix}{batch}/")).resolve()
                if not target.is_relative_to(root):
                    raise DataError(f"{entry['Key']}: leads out of its batch")
                if entry["Key"].endswith("/"):
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                self.client.download_file(self.bucket, entry["Key"], str(target))
            yield root

    def done(self, batch: str) -> None:
        """See `Inbox`."""
        self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}{batch}/{DONE}", Body=b"")


@task(name="look into the inbox", retries=3, retry_delay_seconds=20)
def look(inbox: str, quiet_minutes: float) -> list[str]:
    """Names of the batches that have not changed for so long, in order."""
    ready = time.time() - 60 * quiet_minutes
    return [name for name, at in open_inbox(inbox).arrived().items() if at <= ready]


def open_inbox(inbox: str) -> Inbox:
    """The inbox of that name: a folder, or `s3://bucket/prefix`."""
    return S3Inbox(inbox) if inbox.startswith("s3://") else FolderInbox(Path(inbox))
