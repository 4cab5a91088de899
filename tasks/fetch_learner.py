"""Bring a learner here from the model registry."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from dynammo.learner.folder import LearnerError, LearnerFolder
from tasks.publish import replaced_folder
from tasks.support.mlflow import runs as mlflow_runs
from tasks.support.version import find_learner

_PREFIX = "models:/"


def find_or_fetch(learner: str) -> LearnerFolder:
    """A learner's folder.

    Args:
        learner: its name, or that of the registered model that holds it (`fetch_learner`).
    """
    folder = folder_for(learner)
    if learner.startswith(_PREFIX):
        fetch_learner(learner, folder)
    return folder


def folder_for(learner: str) -> LearnerFolder:
    """As `find_or_fetch`, nothing fetched.

    Raises:
        LearnerError: it is neither the name of a learner nor that of a registered model.
    """
    return find_learner(_learner_name(learner) if learner.startswith(_PREFIX) else learner)


def fetch_learner(uri: str, folder: LearnerFolder) -> None:
    """Bring a learner here from the model registry.

    Args:
        uri: `models:/<name>@champion` or `models:/<name>/<version>`.
        folder: where it goes.

    Raises:
        LearnerError: the model holds no learner; there is another learner of that name here.
    """
    import mlflow.artifacts

    with mlflow_runs.mlflow_client() as client:
        name, _, alias = uri.removeprefix(_PREFIX).partition("@")
        name, _, number = name.partition("/")
        found = (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, number)
        )
        with tempfile.TemporaryDirectory() as temporary:
            local = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{found.source}/artifacts/learner",
                dst_path=temporary,
                tracking_uri=mlflow_runs.tracking_uri(),
            )
            source = LearnerFolder(Path(local).parent, Path(local).name)
            if not source.exists:
                raise LearnerError(f"{uri} holds no learner")
            if problems := source.problems():
                raise LearnerError(f"{uri}: {problems[0]}")
            if folder.exists:
                _check_same(folder, source, uri)
                return
            with replaced_folder(folder.path) as fresh:
                shutil.copytree(source.path, fresh, dirs_exist_ok=True)
                (fresh / "key").chmod(0o600)


def _learner_name(uri: str) -> str:
    """The learner's name in a registered model's URI.

    Raises:
        LearnerError: no such URI.
    """
    model = uri.removeprefix(_PREFIX).partition("@")[0].partition("/")[0]
    if not model.startswith("dynammo-") or ("@" not in uri and "/" not in uri[len(_PREFIX) :]):
        raise LearnerError(
            f"{uri}: expected models:/dynammo-<learner>@champion or models:/dynammo-<learner>/3"
        )
    return model.removeprefix("dynammo-")


def _check_same(here: LearnerFolder, there: LearnerFolder, uri: str) -> None:
    number = there.pointer()["current"]
    same = here.pointer()["current"] == number and here.version(number) == there.version(number)
    if not same:
        raise LearnerError(
            f"there is a learner {here.name!r} here already, at version "
            f"{here.pointer()['current']}, and {uri} is another: learn with the one here by its "
            "name, or move it away"
        )
