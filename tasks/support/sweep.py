"""Clear away what processes left that were killed: a kill -9 gives none the time to do so itself.

Nothing is touched that somebody may still be at work on.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import sqlalchemy
from mlflow.entities import LoggedModelStatus
from prefect import get_run_logger

from tasks.support.exchange import RANDOM, children, remove_drafts
from tasks.support.mlflow.runs import PROCESS, TrackingError, mlflow_client, tracking_uri
from tasks.support.processes import has_ended
from tasks.support.workspace import CHECKPOINTS, IMAGES, MANIFESTS

_TEMPORARY = re.compile(rf"\..+\.{RANDOM}")
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


def remove_stale(folder: Path) -> list[Path]:
    """Remove temporary files and folders that nobody has written to for an hour."""
    removed = []
    for path in children(folder, _TEMPORARY):
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
