"""Clear away what processes left that were killed: a kill -9 gives none the time to do so itself.

Nothing is touched that somebody may still be at work on.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from mlflow.entities import LoggedModelStatus
from prefect import get_run_logger

from tasks.support.mlflow.runs import PROCESS, TrackingError, mlflow_client, tracking_uri
from tasks.support.processes import has_ended
from tasks.support.workspace import CHECKPOINTS, IMAGES, MANIFESTS

_RANDOM = r"[a-z0-9_]{8}"  # what tempfile appends to a prefix
_TEMPORARY = re.compile(rf"\..+\.{_RANDOM}")
_STALE_SECONDS = 3600


def sweep(target: Path) -> None:
    """Clear away what was left beside and in a folder, in the workspace, and in MLflow.

    Args:
        target: folder of results, or of a learner that the caller has locked.
    """
    logger = get_run_logger()
    removed = remove_drafts(target)
    for folder in (CHECKPOINTS.folder, IMAGES, MANIFESTS, target, target / "versions"):
        removed += remove_stale(folder)
    for path in removed:
        logger.info("removed %s, which a killed process left", path)
    try:
        ended = end_orphans()
    except TrackingError as error:  # who needs MLflow says so when it is needed
        logger.warning("runs of killed processes were not looked for: %s", error)
        return
    if ended:
        logger.info("%d MLflow runs of killed processes are ended as KILLED", len(ended))


@contextmanager
def in_use(folder: Path) -> Iterator[bool]:
    """Hold a folder that is being filled; ends with the process, however it ends.

    Yields:
        Whether it is held now: not if another process does, or the file system cannot.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(handle)


def remove_drafts(target: Path) -> list[Path]:
    """Remove what `tasks.publish.replaced_folder` left beside a folder, unless it is still filled.

    Where the folder itself is gone and what was to be replaced is there, that is put back.
    """
    pattern = re.compile(rf"\.{re.escape(target.name)}\.{_RANDOM}")
    removed = []
    for draft in _children(target.absolute().parent, pattern):
        if not draft.is_dir() or draft.is_symlink():
            continue
        with in_use(draft) as held:
            if not held:
                continue
            if not target.exists() and (draft / target.name).is_dir():
                (draft / target.name).rename(target)
            shutil.rmtree(draft, ignore_errors=True)
            removed.append(draft)
    return removed


def remove_stale(folder: Path) -> list[Path]:
    """Remove temporary files and folders that nobody has written to for an hour."""
    removed = []
    for path in _children(folder, _TEMPORARY):
        try:
            inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
            newest = max(file.lstat().st_mtime for file in (path, *inside))
            if time.time() - newest < _STALE_SECONDS:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError:
            continue  # another process was faster, or it is not ours
        removed.append(path)
    return removed


def end_orphans() -> list[str]:
    """End the MLflow runs of processes that live no longer, and the models they were logging.

    Returns:
        Ids of the runs.

    Raises:
        TrackingError: see `tasks.support.mlflow.runs.mlflow_client`.
    """
    if _nothing_recorded():
        return []
    orphans: dict[str, str] = {}  # run -> experiment
    with mlflow_client() as client:
        experiments = [found.experiment_id for found in client.search_experiments()]
        token = None
        while experiments:
            runs = client.search_runs(
                experiments,
                f"attributes.status = 'RUNNING' and tags.`{PROCESS}` LIKE '%'",
                page_token=token,
            )
            for run in runs:
                if has_ended(run.data.tags[PROCESS]):
                    orphans[run.info.run_id] = run.info.experiment_id
            token = runs.token
            if not token:
                break
        if not orphans:
            return []
        for model in client.search_logged_models(sorted(set(orphans.values()))):
            if model.source_run_id in orphans and model.status == LoggedModelStatus.PENDING:
                client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
        for run_id in orphans:
            client.set_terminated(run_id, "KILLED")
    return list(orphans)


def _nothing_recorded() -> bool:
    """The database is a file that is not there yet; opening it would make it."""
    uri = tracking_uri()
    if not uri.startswith("sqlite"):
        return False
    database = sqlalchemy.make_url(uri).database
    return database is not None and not Path(database).exists()


def _children(folder: Path, name: re.Pattern[str]) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if name.fullmatch(path.name))
    except OSError:
        return []
