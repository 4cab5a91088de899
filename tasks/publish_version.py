"""Show a version of a learner: its model as files, its metrics and its model in MLflow."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from dynammo.checkpoint import references_in, to_json, write_atomically
from dynammo.evaluation.protocol import worse_ends
from dynammo.learner.folder import LearnerFolder
from dynammo.learner.settings import DEPLOYED
from tasks.publish import put_graph, replaced_folder, save_merged
from tasks.support.exchange import remove_drafts
from tasks.support.mlflow import champion as aliases
from tasks.support.mlflow import runs as mlflow_runs
from tasks.support.mlflow import served_model
from tasks.support.stage import known_classes, measured
from tasks.support.version import Version, config_of, read_version

_REGISTERED = "registered.json"  # version of the learner -> version of the registered model


def show_version(folder: LearnerFolder) -> None:
    """The champion's model as files, and the version in MLflow; what is there already stays."""
    _write_model(folder)
    _publish(folder)


def model_of(folder: LearnerFolder) -> Path:
    """Where the champion's model is."""
    return folder.path / "model"


def _write_model(folder: LearnerFolder) -> None:
    """Write the champion's model beside the learner, unless it is there."""
    number = folder.pointer()["champion"]
    target, note = model_of(folder), {"version": number}
    remove_drafts(target)  # of a process that was killed here
    if not number:
        shutil.rmtree(target, ignore_errors=True)
        return
    marker = target / "version.json"
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == note:
        return
    with replaced_folder(target) as fresh:
        _save(folder, number, read_version(folder, number), fresh, target)
        write_atomically(fresh / "version.json", to_json(note))


def _save(
    folder: LearnerFolder,
    number: int,
    version: Version,
    target: Path,
    earlier: Path | None = None,
) -> None:
    hashes = version["batches"][-1]["hash"]
    config = config_of(version)
    learner: dict[str, str | int] = {"name": folder.name, "version": number}
    save_merged(
        config, hashes, version["backbone"], version["stage"], target, folder.store, learner
    )
    put_graph(config, target, earlier)


@task(name="register version", retries=2, retry_delay_seconds=3)
def register_version(folder_path: str, number: int) -> str | None:
    """Record a version's metrics in MLflow, and register its model with the learner whole in it.

    All versions share one run a method, so that its curves run over the versions. What is recorded
    already stays as it is.

    Args:
        folder_path: of the learner.
        number: of the version.

    Returns:
        The registered model's version; none where `tracking.register_model` is off.
    """
    path = Path(folder_path)
    folder = LearnerFolder(path.parent, path.name)
    version = read_version(folder, number)
    config = config_of(version)
    if not config.tracking.register_model:
        return None
    runs = mlflow_runs.open_runs(
        config,
        folder.identity,
        {"hash": folder.identity},
        list(version["stage"]["methods"]),
    )
    summary: dict[str, float | None] = {}
    for method, evaluated in measured(version["stage"]).items():
        document = folder.store.load_json(evaluated["metrics"])
        mlflow_runs.log_stage(runs["children"][method], number, document)
        if method == DEPLOYED:
            ends = worse_ends(version["judgement"]["requirements"])
            mlflow_runs.log_requirements(runs["children"][method], number, ends)
            summary = {
                "last_accuracy": document["accuracy"],
                "last_mean_class_recall": document["mean_class_recall"],
            }
    run = runs["children"][DEPLOYED]
    example = served_model.plain_example(config.image.form)
    with tempfile.TemporaryDirectory(dir=folder.path, prefix=".registered.") as temporary:
        model, whole = Path(temporary) / "model", Path(temporary) / "learner"
        _save(folder, number, version, model, model_of(folder))
        pack(folder, number, whole)
        logged = served_model.log_model(run, model, config.model_name, example, learner=whole)
    registered = served_model.register(
        config.model_name,
        run,
        logged,
        data_hash=version["batches"][-1]["hash"],
        classes=known_classes(version["stage"]),
        summary=summary,
        learner=folder.name,
    )
    mlflow_runs.finish_runs(runs)
    get_run_logger().info("registered %s version %s", config.model_name, registered)
    if page := mlflow_runs.compare_url(runs):
        get_run_logger().info("the curves in MLflow: %s", page)
    return registered


def pack(folder: LearnerFolder, number: int, target: Path) -> None:
    """Copy what another machine needs to go on from a version: it, the champion, the version that
    the plan in force authorised, the plans, all their objects and the key.
    """
    pointer = folder.pointer()
    copy = LearnerFolder(target.parent, target.name)
    documents: list[dict[str, Any]] = [{**pointer}]
    for other in needed_versions(folder, number):
        document = folder.version(other)
        write_atomically(copy.path / "versions" / f"{other:04d}.json", to_json(document))
        if signature_of(folder, other).is_file():
            content = signature_of(folder, other).read_bytes()
            write_atomically(signature_of(copy, other), content)
        documents.append(document)
    for document in documents:
        for ref in references_in(document):
            for file in (folder.store.path(ref), folder.store.path(ref).with_suffix(".json")):
                if file.is_file():
                    copy.store.folder.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(file, copy.store.folder / file.name)
    shutil.copy2(folder.path / "key", copy.path / "key")
    write_atomically(copy.path / "learner.json", to_json({**pointer, "current": number}))


def needed_versions(folder: LearnerFolder, current: int | None = None) -> list[int]:
    """The versions that the next step builds on: the current one or another in its place, the
    champion, and the one that the plan in force authorised.
    """
    pointer = folder.pointer()
    authorised = pointer["plans"][-1]["authorised"] if pointer["plans"] else 0
    return sorted({current or pointer["current"], pointer["champion"], authorised} - {0})


def signature_of(folder: LearnerFolder, number: int) -> Path:
    """Where the signature of a version is, if it has one."""
    return folder.path / "signatures" / f"{number:04d}.json"


def registered_versions(folder: LearnerFolder) -> dict[int, str]:
    """Versions of the learner -> versions of the registered model, in the MLflow that is in use.

    Others, of an MLflow that the learner was taken to or from, are not among them.

    Raises:
        TrackingError: MLflow does not answer, or refuses.
    """
    if not (noted := _noted(folder)):
        return {}
    here = served_model.versions_from(config_of(read_version(folder)).model_name, folder.identity)
    return {number: made for number, made in noted.items() if made in here}


def withdraw(folder: LearnerFolder) -> None:
    """Remove the learner from all registered models, where images were removed from it; the models
    stay, and the present version is registered anew.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    noted = folder.path / _REGISTERED
    if not noted.is_file():
        return
    name = config_of(read_version(folder)).model_name
    made = served_model.versions_from(name, folder.identity)
    with mlflow_runs.mlflow_client() as client:
        for number in sorted(made):
            model = client.get_model_version(name, number)
            repository: Any = get_artifact_repository(
                str(model.source), tracking_uri=mlflow_runs.tracking_uri()
            )
            if repository.list_artifacts("artifacts/learner"):
                repository.delete_artifacts("artifacts/learner")
    noted.unlink()


def _noted(folder: LearnerFolder) -> dict[int, str]:
    """What `_publish` noted, in whichever MLflow."""
    noted = folder.path / _REGISTERED
    known = json.loads(noted.read_text(encoding="utf-8")) if noted.is_file() else {}
    return {int(number): made for number, made in known.items()}


def _publish(folder: LearnerFolder) -> None:
    """Register the current version in MLflow, unless it is, and the champion, which may have been
    made beside another MLflow; the alias follows the champion.
    """
    pointer, known = folder.pointer(), registered_versions(folder)
    if elsewhere := _noted(folder).keys() - known.keys():
        get_run_logger().warning(
            "%s: version %s was registered in another MLflow: images removed from now on are not "
            "removed there",
            folder.name,
            ", ".join(map(str, sorted(elsewhere))),
        )
    champion = pointer["champion"]
    for number in sorted({pointer["current"], champion} - {0} - known.keys()):
        if made := register_version(str(folder.path), number):
            known[number] = made
            write_atomically(folder.path / _REGISTERED, to_json(known))
    if champion in known:
        version = read_version(folder, champion)
        reason = pointer["champions"][-1]["reason"]
        overruled = None if version["gate"]["passed"] else reason or "promoted"
        model = config_of(version).model_name
        aliases.promote(model, known[champion], version["gate"], reason=overruled)
