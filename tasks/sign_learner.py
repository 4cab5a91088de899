"""Sign what a learner goes on from and its model, and refuse what is not signed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynammo.checkpoint import references_in
from dynammo.deploy.signature import (
    PUBLIC_KEY,
    SIGNATURE,
    check_key,
    sign,
    sign_model,
    verify,
)
from dynammo.errors import SignatureError
from dynammo.learner.folder import LearnerFolder
from tasks.publish_version import model_of, needed_versions, registered_versions, signature_of
from tasks.support.mlflow import runs as mlflow_runs
from tasks.support.version import config_of, read_version

POINTER = "learner.json"


def sign_learner(folder: LearnerFolder, key: Path) -> list[int]:
    """Sign the versions that the next step builds on, `learner.json`, which says which they are and
    has the plans, and the champion's model; here and, where they are registered, in MLflow.

    Args:
        folder: of the learner, whose lock is held.
        key: file of the private key.

    Returns:
        The versions.
    """
    numbers = needed_versions(folder)
    for number in numbers:
        sign(folder.path, _files(folder, number), key, signature_of(folder, number))
    sign(folder.path, _pointer_files(folder), key, _pointer_signature(folder))
    if model_of(folder).is_dir():
        sign_model(model_of(folder), key)
    _attach(folder, key)
    return numbers


def check_signer(key: str | None, public: str | None) -> Path | None:
    """Refuse to change what a key shall sign where it cannot, or where another is asked for.

    Args:
        key: file of the private key; none if nothing is signed.
        public: file of the public key; default: DYNAMMO_PUBLIC_KEY, and without that any will do.

    Returns:
        The private key's file.

    Raises:
        SignatureError: see `dynammo.deploy.signature.check_key`.
    """
    if key is None:
        return None
    asked = public or os.environ.get(PUBLIC_KEY)
    check_key(Path(key), Path(asked) if asked else None)
    return Path(key)


def check_signed(
    folder: LearnerFolder, key: str | None, versions: Sequence[int] | None = None
) -> None:
    """Refuse to go on from a version that is not signed; or, where none is named, from a
    `learner.json` that is not: whoever moved it, by `promote`, `rollback` or `plan`, must sign.

    Args:
        folder: of the learner; one that has learnt nothing yet has nothing to sign.
        key: file of the public key; none: that of the environment variable DYNAMMO_PUBLIC_KEY, and
            without one nothing is asked for.
        versions: their numbers; default: the current one, the champion and the authorised one.

    Raises:
        SignatureError: one of them, or `learner.json`, is not signed by it.
    """
    if not (key := key or os.environ.get(PUBLIC_KEY)) or not folder.exists:
        return
    for number in needed_versions(folder) if versions is None else versions:
        what = f"{folder.name}, version {number}"
        signature = signature_of(folder, number)
        verify(folder.path, _files(folder, number), Path(key), signature, what)
    if versions is None:
        what = f"what is in use of {folder.name}"
        verify(folder.path, _pointer_files(folder), Path(key), _pointer_signature(folder), what)


def _files(folder: LearnerFolder, number: int) -> list[str]:
    """A version's document, and all that it names: tensors and what is said of them."""
    objects = {ref["path"] for ref in references_in(folder.version(number))}
    described = {str(Path(path).with_suffix(".json")) for path in objects}
    return [
        f"versions/{number:04d}.json",
        *(f"objects/{name}" for name in sorted(objects | described)),
    ]


def _pointer_files(folder: LearnerFolder) -> list[str]:
    """`learner.json` and the plans."""
    plans = (Path(ref["path"]) for ref in references_in({**folder.pointer()}))
    return [POINTER, *(f"objects/{path.with_suffix('.json')}" for path in plans)]


def _pointer_signature(folder: LearnerFolder) -> Path:
    return folder.path / "signatures" / POINTER


def _attach(folder: LearnerFolder, key: Path) -> None:
    """Put the signatures into the registered models of the current version and the champion."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    if not (known := registered_versions(folder)):
        return
    pointer = folder.pointer()
    model = config_of(read_version(folder)).model_name
    with mlflow_runs.mlflow_client() as client, tempfile.TemporaryDirectory() as temporary:
        for number in {pointer["current"], pointer["champion"]} & known.keys():
            source = str(client.get_model_version(model, known[number]).source)
            repository: Any = get_artifact_repository(
                source, tracking_uri=mlflow_runs.tracking_uri()
            )
            if number == pointer["champion"]:
                repository.log_artifact(str(model_of(folder) / SIGNATURE), "artifacts/model")
            if repository.list_artifacts("artifacts/learner"):
                signatures = str(folder.path / "signatures")
                repository.log_artifacts(signatures, "artifacts/learner/signatures")
                own = _as_registered(folder, number, Path(temporary), repository)
                sign(own.path, _pointer_files(own), key, _pointer_signature(own))
                signature = str(_pointer_signature(own))
                repository.log_artifact(signature, "artifacts/learner/signatures")


def _as_registered(
    folder: LearnerFolder, number: int, temporary: Path, repository: Any
) -> LearnerFolder:
    """The `learner.json` that a version was registered with, which is of its time, and the plans.

    Raises:
        SignatureError: it is no earlier state of this learner: somebody has changed it.
    """
    (temporary / str(number)).mkdir()
    repository.download_artifacts(f"artifacts/learner/{POINTER}", str(temporary / str(number)))
    own = LearnerFolder(temporary / str(number) / "artifacts", "learner")
    then, now = own.pointer(), folder.pointer()
    earlier = all(then[key] == now[key][: len(then[key])] for key in ("champions", "plans"))
    champion = then["champions"][-1]["version"] if then["champions"] else 0
    if not earlier or (then["current"], then["champion"]) != (number, champion):
        raise SignatureError(f"version {number} as registered in MLflow is none of this learner's")
    own.store.folder.mkdir()
    for ref in references_in({**then}):
        shutil.copy2(folder.store.path(ref), own.store.path(ref))
    return own
