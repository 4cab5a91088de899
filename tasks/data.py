"""Version the data, and decode it once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from prefect import get_run_logger, task

from dynammo.config import Config
from dynammo.data.checks import Repeats, check_image_set
from dynammo.data.samples import read_manifest, subset_hash, write_manifest
from dynammo.data.scenario import build_scenario
from dynammo.data.sources.loading import load_source
from dynammo.data.store import build_store
from dynammo.errors import DataError
from tasks.support.dvc import hint_if_missing, tracked_but_missing, version_with_dvc
from tasks.support.progress import progress_bar
from tasks.support.workspace import IMAGES, MANIFESTS, Classes


class TaskData(TypedDict):
    """One task of the scenario: its classes, and the hashes and numbers of its images."""

    number: int
    train: Classes
    test_images: int
    train_images: int


class DataVersion(TypedDict):
    """A validated data set under a content hash."""

    manifest: str
    hash: str
    dvc: dict[str, Any]
    tasks: list[TaskData]
    tests: Classes
    train_images: int
    test_images: int


@task(name="version data", task_run_name="version data {config.data.name}")
def version_data(config: Config) -> DataVersion:
    """List, hash and check the images, order their classes into tasks, and record the version.

    Runs every time: hashing is what tells whether anything changed.

    Raises:
        DataError, ConfigError: see `dynammo.data`; nothing has been written then.
    """
    logger = get_run_logger()
    path = Path(config.data.path)
    made_anew = tracked_but_missing(path)
    try:
        image_set = load_source(config.data.source, path, config.data.options)
    except DataError as error:
        raise DataError(f"{error}{hint_if_missing(path)}") from None
    check_image_set(image_set, config.data.repeats)
    scenario = build_scenario(image_set, config.scenario, config.memory, config.seed)
    dvc = version_with_dvc(path, made_anew, logger)
    manifest = MANIFESTS / f"{image_set.content_hash}.json"
    write_manifest(image_set, manifest)
    tasks: list[TaskData] = []
    for part in scenario:
        train, test = scenario.train(part), scenario.test(part)
        logger.info(
            "task %d/%d: %s (%d training, %d test images)",
            part.number,
            len(scenario),
            ", ".join(part.classes),
            len(train),
            len(test),
        )
        tasks.append(
            {
                "number": part.number,
                "train": {"names": list(part.classes), "hash": subset_hash(train)},
                "train_images": len(train),
                "test_images": len(test),
            }
        )
    names = [name for part in scenario for name in part.classes]
    return {
        "manifest": str(manifest),
        "hash": image_set.content_hash,
        "dvc": dvc,
        "tasks": tasks,
        "tests": {"names": names, "hash": subset_hash(image_set.select("test", names))},
        "train_images": sum(part["train_images"] for part in tasks),
        "test_images": sum(part["test_images"] for part in tasks),
    }


@task(name="prepare images", task_run_name="prepare images at {size} px")
def prepare_images(manifest: str, size: int, repeated: Repeats = "refuse") -> str:
    """Decode and resize every image once into a memory-mapped file; an intact one is reused.

    Raises:
        DataError: an image cannot be read, or the same picture is in train and test.
    """
    with progress_bar("decode images", "image") as progress:
        image_set = read_manifest(Path(manifest))
        return str(build_store(image_set, size, IMAGES, progress, repeated))
