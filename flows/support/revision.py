"""A learner's next version without a new batch: what is taken out of it, and what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from dynammo.config import Config
from dynammo.learner.folder import LearnerError, LearnerFolder
from dynammo.learner.settings import DEPLOYED
from flows.support.versions import evaluated
from tasks.compare_versions import answers_of
from tasks.forget_batches import Left
from tasks.retain import carry_features
from tasks.support.kept import select_tests
from tasks.support.stage import Stage, known_classes
from tasks.support.version import Draft, Learnt, Tested, Version, draft_version, ledger_of
from tasks.support.workspace import Context


def check_known(
    folder: LearnerFolder, old: Version, batches: Sequence[int], classes: Sequence[str]
) -> None:
    """Find out whether a version has learnt what is to be forgotten.

    Raises:
        LearnerError: it has not.
    """
    numbers, known = [own["number"] for own in old["batches"]], known_classes(old["stage"])
    if absent := [number for number in batches if number not in numbers]:
        there = ", ".join(map(str, numbers))
        raise LearnerError(f"{folder.name} has no batch {absent[0]}; there are: {there}")
    if unknown := [name for name in classes if name not in known]:
        raise LearnerError(
            f"{folder.name} does not know class {unknown[0]!r}; it knows: {', '.join(known)}"
        )


def tests_left(
    folder: LearnerFolder, old: Version, left: Left, batches: Sequence[int], context: Context
) -> list[Tested]:
    """Test images of what is still known, as the network sees them now.

    Args:
        folder: of the learner.
        old: the version that something was taken out of.
        left: what is left of it.
        batches: those that were forgotten.
        context: places.
    """
    known = set(known_classes(left.stage))
    tests: list[Tested] = []
    for test in old["tests"]:
        names = [name for name in test["kept"]["names"] if name in known]
        if test["batch"] in batches or not names:
            continue
        everything = torch.ones(len(folder.store.load(test["kept"]["labels"])["labels"])).bool()
        tests.append({**test, "kept": select_tests(test["kept"], everything, names, folder.store)})
    for method, drift in left.drifts.items():
        tests = carry_features(tests, method, drift, context)
    return tests


def taken_for(
    folder: LearnerFolder,
    old: Version,
    config: Config,
    left: Left,
    context: Context,
) -> dict[str, dict[str, int]]:
    """Of each class that is known no more, what its test images are called now, and how many of
    them; without those that have none. The images are gone once the version is written.

    Args:
        folder: of the learner.
        old: the version that something was taken out of.
        config: of the version.
        left: what is left of it.
        context: places.
    """
    lost = gone(old, left)
    if not lost:
        return {}
    tests = old["tests"]
    for method, drift in left.drifts.items():
        tests = carry_features(tests, method, drift, context)
    deployed: Stage = {**left.stage, "methods": {DEPLOYED: left.stage["methods"][DEPLOYED]}}
    stage = evaluated(config, old["backbone"], deployed, None, tests, context)
    counts: dict[str, Counter[str]] = {name: Counter() for name in lost}
    measured: Version = {**old, "stage": stage, "tests": tests}
    for answers in answers_of(measured, context).values():
        for actual, called in zip(answers.actual, answers.predicted, strict=True):
            if actual in counts:
                counts[actual][called] += 1
    return {name: dict(own) for name, own in counts.items() if own}


def gone(old: Version, left: Left) -> list[str]:
    """The classes that are known no more."""
    known = set(known_classes(left.stage))
    return [name for name in known_classes(old["stage"]) if name not in known]


def draft_revised(
    folder: LearnerFolder,
    old: Version,
    config: Config,
    left: Left,
    stage: Stage,
    tests: list[Tested],
    batches: Sequence[int],
    operation: str,
    modification: str,
    taken_for: dict[str, dict[str, int]],
) -> Draft:
    """The version that is made of what is left: its `stage`, measured, and its test images.

    `batches` were forgotten; for the rest see `tasks.support.version.draft_version`.
    """
    known = set(known_classes(stage))
    hashes = [own["hash"] for own in old["batches"] if own["number"] in batches]
    batches_left: list[Learnt] = [
        {
            **own,
            "new": [name for name in own["new"] if name in known],
            "again": [name for name in own["again"] if name in known],
        }
        for own in old["batches"]
        if own["number"] not in batches
    ]
    return draft_version(
        folder,
        old,
        config,
        ledger_of(folder, old).without(batches),
        [modification],
        {},
        operation=operation,
        backbone=old["backbone"],
        stage=stage,
        batches=batches_left,
        forgotten={
            "batches": [*old["forgotten"]["batches"], *hashes],
            "classes": [*old["forgotten"]["classes"], *gone(old, left)],
        },
        tests=tests,
        notes=left.remarks,
        taken_for=taken_for,
    )
