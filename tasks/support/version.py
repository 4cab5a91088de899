"""A version of a learner: all that it is made of, and where it came from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from dynammo.checkpoint import Ref
from dynammo.config import Config, load_config
from dynammo.evaluation.gate import Comparison, Decision
from dynammo.evaluation.protocol import Judgement, Step
from dynammo.learner.folder import LearnerFolder
from dynammo.learner.ledger import Ledger
from dynammo.learner.settings import DEPLOYED
from tasks.support.stage import Stage
from tasks.support.workspace import Context, Kept, context_of


class Learnt(TypedDict):
    """A batch that a version has learnt: `new` classes, and images of classes known `again`."""

    number: int
    hash: str
    at: str
    new: list[str]
    again: list[str]
    train_images: int
    test_images: int


class Tested(TypedDict):
    """The test images of a batch, as they are kept."""

    batch: int
    kept: Kept


class Forgotten(TypedDict):
    """What was learnt and taken out again: hashes of batches, and classes."""

    batches: list[str]
    classes: list[str]


class Version(TypedDict):
    """A version's document; a committed one has `format` and `number` too.

    `parent` is the version it was made of, 0 for the first, and `operation` what was done to it, in
    words. `code` is the hash of the code of the steps and `versions` are those of the libraries;
    `notes` say where either differs from the parent's. `steps` are all changes that led here,
    oldest first, and `judgement` what the plan says of it, of one that is written.
    """

    parent: int
    operation: str
    at: str
    config: dict[str, Any]
    backbone: Ref
    stage: Stage
    batches: list[Learnt]
    forgotten: Forgotten
    tests: list[Tested]
    ledger: Ref
    comparison: Comparison | None
    gate: Decision
    code: str
    versions: dict[str, str]
    notes: list[str]
    steps: list[Step]
    judgement: NotRequired[Judgement]


def learners_root() -> Path:
    """The folder of all learners: `learners` here, or the environment variable
    `DYNAMMO_LEARNERS`.
    """
    return Path(os.environ.get("DYNAMMO_LEARNERS", "learners")).absolute()


def find_learner(name: str) -> LearnerFolder:
    """The learner's folder, whether it has learnt anything or not."""
    return LearnerFolder(learners_root(), name)


def config_of(version: Version) -> Config:
    """The configuration that a version was made with."""
    return load_config(None, version["config"])


def context_in(folder: LearnerFolder, config: Config, label: str = "") -> Context:
    """The context of a step that works in a learner's store and sees no batch."""
    return context_of(config, store=str(folder.store.folder), key=folder.key, label=label)


def ledger_of(folder: LearnerFolder, version: Version) -> Ledger:
    """What a version has seen."""
    return Ledger(**folder.store.load(version["ledger"]))


def recall_of(folder: LearnerFolder, version: Version, method: str = DEPLOYED) -> float | None:
    """Mean class recall as measured when the version was made; none if it could not be."""
    own = version["stage"]["methods"].get(method)
    if own is None or own["evaluated"] is None:
        return None
    document = folder.store.load_json(own["evaluated"]["metrics"])
    recall: float | None = document["mean_class_recall"]
    return recall
