"""A batch that has arrived for a learner: what it brings, and how the next version tells of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from prefect import get_run_logger

from dynammo.checkpoint import Ref
from dynammo.config import Config
from dynammo.config.parents import changes
from dynammo.data.checks import check_image_set
from dynammo.data.samples import ImageSet
from dynammo.errors import ConfigError
from dynammo.evaluation.protocol import Arrived
from dynammo.learner.batch import load_batch
from dynammo.learner.folder import LearnerFolder, now
from dynammo.learner.ledger import Ledger
from dynammo.learner.settings import DEPLOYED, check_again, first_settings, next_settings
from dynammo.memory.herding import quota
from flows.support.learning import check_hierarchy
from tasks.keep_images import keep_images
from tasks.retain import carry_features
from tasks.support.stage import Stage, known_classes, measured
from tasks.support.version import (
    Draft,
    Forgotten,
    Learnt,
    Tested,
    Version,
    config_of,
    draft_version,
    ledger_of,
    read_version,
)
from tasks.support.workspace import Context
from tasks.version_data import Batch


class Arrival(NamedTuple):
    """A batch of images: its number, its `new` classes, those known that come `again`, and the
    ledger of what was seen before it.
    """

    images: ImageSet
    number: int
    new: list[str]
    again: list[str]
    seen: Ledger

    @property
    def classes(self) -> list[str]:
        """All of its classes, in the order in which they are learnt."""
        return [*self.again, *self.new]

    def modifications(self, stated: list[str]) -> list[str]:
        """What learning it changes, as a plan calls it; `stated` is what it does not tell."""
        seen = (("add_named_class", self.new), ("retrain_same_classes", self.again))
        return [*(kind for kind, classes in seen if classes), *stated]


def configured(
    folder: LearnerFolder, params: str | None, overrides: dict[str, Any]
) -> tuple[Config, Version | None]:
    """The configuration of a learner's next version, and the version that it is made of.

    Args:
        folder: of the learner, which may not be made yet.
        params: YAML file, for a new learner.
        overrides: settings that win over it, or over those that the learner has.

    Raises:
        ConfigError: it is no configuration of a learner, or not one of this learner.
    """
    if not folder.exists:
        return first_settings(folder.name, params, overrides), None
    if params is not None:
        raise ConfigError([f"{folder.name} has its settings; a params file is for a new learner"])
    before = read_version(folder)
    return next_settings(config_of(before), overrides), before


def read_batch(
    path: Path, folder: LearnerFolder, config: Config, before: Version | None
) -> Arrival:
    """List a batch's images and see that the learner can learn them.

    Args:
        path: folder of images, or a CSV (`dynammo.learner.batch`).
        folder: of the learner; one that has seen nothing is not made yet.
        config: of the next version.
        before: the version that learns it; none for the first batch.

    Raises:
        DataError: of the batch.
        ConfigError: the memory has no place for its classes, a method cannot learn more of them, or
            one is a group of others.
    """
    ledger = ledger_of(folder, before) if before else Ledger.empty()
    key = folder.key if before else "00" * 32
    images, left_out = _listed(path, config, ledger, key)
    if left_out:
        get_run_logger().warning("%d images are left out: they have been learnt before", left_out)
    check_image_set(images, config.data.repeats)
    known = known_classes(before["stage"]) if before else []
    new = sorted(set(images.classes) - set(known))
    again = sorted(set(images.classes) & set(known))
    quota(config.memory, len(known) + len(new))  # there is a place for each
    check_again(config, again)
    check_hierarchy(config, [*known, *new])
    numbers = [own["number"] for own in before["batches"]] if before else []
    return Arrival(images, max(numbers, default=0) + 1, new, again, ledger)


def learnt_from(path: Path, folder: LearnerFolder, config: Config, version: Version) -> str:
    """The hash of a batch as the version before this one would have learnt it."""
    parent = version["parent"]
    ledger = ledger_of(folder, read_version(folder, parent)) if parent else Ledger.empty()
    images, _ = _listed(path, config, ledger, folder.key)
    return images.content_hash


def _listed(path: Path, config: Config, ledger: Ledger, key: str) -> tuple[ImageSet, int]:
    """`load_batch` as configured."""
    return load_batch(
        path,
        config.data.test_share,
        ledger,
        key,
        config.retention.subgroups,
        config.clinical,
        volumes=config.image.form.volumes,
    )


def keep_tests(
    config: Config, before: Version | None, batch: Batch, stage: Stage, context: Context
) -> list[Tested]:
    """The test images of all batches, those of earlier ones as the network sees them now.

    Args:
        config: of the learner.
        before: the version that has learnt the batch.
        batch: what was learnt; its test images are kept.
        stage: after it.
        context: in which the batch's images can be read.
    """
    tests, parts = before["tests"] if before else [], stage["methods"][DEPLOYED]["parts"]
    if parts and parts[-1]["batch"] == batch["number"] and (drift := parts[-1]["drift"]):
        tests = carry_features(tests, DEPLOYED, drift, context)
    if not batch["test_images"]:
        return tests
    kept = keep_images(config.image, "test", batch["test"], context)
    return [*tests, {"batch": batch["number"], "kept": kept}]


def was_answered(before: Version | None) -> Stage | None:
    """The stage before, if its answers to the kept test images are known."""
    if before is None or not before["tests"]:
        return None
    stage = before["stage"]
    return stage if len(measured(stage)) == len(stage["methods"]) else None


def draft_learnt(
    folder: LearnerFolder,
    before: Version | None,
    config: Config,
    arrival: Arrival,
    batch: Batch,
    stated: list[str],
    backbone: Ref,
    stage: Stage,
    tests: list[Tested],
) -> Draft:
    """The version that has learnt a batch, as it arrived and as it was versioned.

    `stated` are the modifications that the batch does not tell by itself; for the rest see
    `draft_version`.
    """
    forgotten = before["forgotten"] if before else Forgotten(batches=[], classes=[])
    learnt: Learnt = {
        "number": batch["number"],
        "hash": batch["hash"],
        "at": now(),
        "new": arrival.new,
        "again": arrival.again,
        "train_images": batch["train_images"],
        "test_images": batch["test_images"],
    }
    return draft_version(
        folder,
        before,
        config,
        arrival.seen.plus(Ledger.of(arrival.images.samples, arrival.number, folder.key)),
        arrival.modifications(stated),
        {name: _arrived(arrival.images, name) for name in arrival.new},
        operation=_told(arrival, batch["train_images"]),
        backbone=backbone,
        stage=stage,
        batches=[*(before["batches"] if before else []), learnt],
        # What came back is not forgotten any more.
        forgotten={
            "batches": [own for own in forgotten["batches"] if own != batch["hash"]],
            "classes": [own for own in forgotten["classes"] if own not in arrival.new],
        },
        tests=tests,
        notes=changes(config_of(before).classes.parents, config.classes.parents) if before else [],
    )


def _arrived(images: ImageSet, name: str) -> Arrived:
    """How much came of a class."""
    own = [sample for sample in images.samples if sample.label == name]
    return {
        "images": sum(sample.split == "train" for sample in own),
        "test_images": sum(sample.split == "test" for sample in own),
        "patients": len({sample.group or sample.sha256 for sample in own}),
    }


def _told(arrival: Arrival, images: int) -> str:
    said = [f"learn {', '.join(arrival.new)}"] if arrival.new else []
    said += [f"more of {', '.join(arrival.again)}"] if arrival.again else []
    return f"{'; '.join(said)} ({images} images)"
