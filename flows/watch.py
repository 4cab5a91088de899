"""The flow that learns what arrives: a folder or an S3 prefix is an inbox of batches.

Deployed as `dynammo/watch`, on a schedule. Whatever goes wrong is told (`flows.notify`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from prefect import flow, get_run_logger, task

from dynammo.errors import DataError
from flows.learn import learn
from flows.notify import notify, tell
from tasks.support.version import find_learner

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
    return [name for name, at in _open(inbox).arrived().items() if at <= ready]


@flow(name="dynammo", flow_run_name="{learner}: watch {inbox}", on_failure=[notify])
def watch(
    learner: str,
    inbox: str,
    quiet_minutes: float = 10,
    overrides: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Learn every batch that has arrived, in the order of their names; one that fails stops it.

    Args:
        learner: its name; made by the first batch.
        inbox: a folder of batches, or `s3://bucket/prefix`. A batch that is learnt gets a file
            `.learnt`, and is nobody's business here any more: delete it.
        quiet_minutes: a batch that changed since is still being copied.
        overrides: settings, for the first batch.

    Returns:
        What `learn` gave for each.
    """
    logger, made = get_run_logger(), []
    for batch in look(inbox, quiet_minutes):
        logger.info("learning %s", batch)
        own = _open(inbox)
        with own.here(batch) as folder:
            new = not find_learner(learner).exists
            done = learn(learner, str(folder), None, overrides if new else None)
        own.done(batch)
        made.append(done)
        if not done["champion"]:
            tell(
                f"{learner}: version {done['version']} ({batch}) is not champion",
                f"The gate did not pass; `dynammo history {learner}` and the log say why.",
            )
    return made


def _open(inbox: str) -> Inbox:
    return S3Inbox(inbox) if inbox.startswith("s3://") else FolderInbox(Path(inbox))
