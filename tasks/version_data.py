"""Version the data, and decode it once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from prefect import get_run_logger, task

from dynammo.config import Config, ImageConfig
from dynammo.data.checks import Repeats, check_image_set
from dynammo.data.samples import ImageSet, read_manifest, subset_hash, write_manifest
from dynammo.data.scenario import build_scenario
from dynammo.data.sources.loading import load_data
from dynammo.data.store import build_store
from dynammo.errors import DataError
from tasks.support.dvc import hint_if_missing, tracked_but_missing, version_with_dvc
from tasks.support.progress import progress_bar
from tasks.support.workspace import IMAGES, MANIFESTS, Classes


class Batch(TypedDict):
    """Images that arrive together: their classes, hashes and numbers, and where they are listed.

    `hash` is that of all images of the batch.
    """

    number: int
    manifest: str
    hash: str
    train: Classes
    test: Classes
    train_images: int
    test_images: int


class DataVersion(TypedDict):
    """A validated data set under a content hash."""

    manifest: str
    hash: str
    dvc: dict[str, Any]
    tasks: list[Batch]
    classes: list[str]
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
        image_set = load_data(config)
    except DataError as error:
        raise DataError(f"{error}{hint_if_missing(path)}") from None
    check_image_set(image_set, config.data.repeats)
    scenario = build_scenario(image_set, config.scenario, config.memory, config.seed)
    dvc = version_with_dvc(path, made_anew, logger)
    manifest = MANIFESTS / f"{image_set.content_hash}.json"
    write_manifest(image_set, manifest)
    tasks = [
        write_batch(image_set, part.number, list(part.classes), MANIFESTS) for part in scenario
    ]
    for batch in tasks:
        logger.info(
            "task %d/%d: %s (%d training, %d test images)",
            batch["number"],
            len(scenario),
            ", ".join(batch["train"]["names"]),
            batch["train_images"],
            batch["test_images"],
        )
    return {
        "manifest": str(manifest),
        "hash": image_set.content_hash,
        "dvc": dvc,
        "tasks": tasks,
        "classes": [name for part in scenario for name in part.classes],
        "train_images": sum(part["train_images"] for part in tasks),
        "test_images": sum(part["test_images"] for part in tasks),
    }


def write_batch(image_set: ImageSet, number: int, classes: list[str], folder: Path) -> Batch:
    """List some classes' images in a manifest of their own: all that learning them can see.

    Args:
        image_set: images of these classes, and perhaps of others.
        number: of the batch, from 1.
        classes: in the order in which they are learnt.
        folder: for the manifest.
    """
    train = image_set.select("train", classes)
    tested = {sample.label for sample in image_set.samples if sample.split == "test"}
    test = image_set.select("test", [name for name in classes if name in tested])
    batch = ImageSet(image_set.root, (*train, *test))
    manifest = folder / f"{batch.content_hash}.json"
    write_manifest(batch, manifest)
    return {
        "number": number,
        "manifest": str(manifest),
        "hash": batch.content_hash,
        "train": {"names": classes, "hash": subset_hash(train)},
        "test": {"names": classes, "hash": subset_hash(test)},
        "train_images": len(train),
        "test_images": len(test),
    }


@task(name="prepare images", task_run_name="prepare images at {image.size} px")
def prepare_images(
    manifest: str, image: ImageConfig, repeated: Repeats = "refuse", folder: str = str(IMAGES)
) -> str:
    """Decode and resize every image once into a memory-mapped file; an intact one is reused.

    Raises:
        DataError: an image cannot be read, or the same picture is in train and test.
    """
    with progress_bar("decode images", "image") as progress:
        image_set = read_manifest(Path(manifest))
        return str(build_store(image_set, image.form, Path(folder), progress, repeated))
