"""Compare a new version of a learner with the champion, and let the gate decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from prefect import task
from torch import Tensor

from dynammo.config import Config
from dynammo.data.marks import NOBODY, rows
from dynammo.evaluation.gate import Comparison, Decision, Outcome, compare, judge
from dynammo.evaluation.protocol import Against
from dynammo.federated.judge import Counts
from dynammo.learner.settings import DEPLOYED
from tasks.support.stage import known_classes
from tasks.support.version import Draft, Tested, Version
from tasks.support.workspace import Context

CONFIDENCE = 0.95  # of the intervals that the gate tells of


class Other(NamedTuple):
    """Another version of the learner: its number, and its document, measured on test sets that the
    new one is measured on, too.
    """

    number: int
    version: Version


class Answers(NamedTuple):
    """What a version says of a test set: class names of each image, actual and predicted."""

    actual: list[str]
    predicted: list[str]


def answers_known(old: Version, tests: Sequence[Tested]) -> bool:
    """Whether a version's own answers, from when it was made, serve to compare it on test images.

    They do where the images it was measured on are still there, and those that came since are of
    no class that it knows.
    """
    evaluated = old["stage"]["methods"][DEPLOYED]["evaluated"]
    known = set(known_classes(old["stage"]))
    then = {test["batch"]: test["kept"]["labels"] for test in old["tests"]}
    now = {test["batch"]: test["kept"] for test in tests}
    return (
        evaluated is not None
        and evaluated["predictions"] is not None
        and all(batch in now and now[batch]["labels"] == ref for batch, ref in then.items())
        and not any(known & set(kept["names"]) for batch, kept in now.items() if batch not in then)
    )


@task(name="compare versions", task_run_name="compare with version {other.number}")
def compare_with(
    version: Draft, other: Other, context: Context, confidence: float = CONFIDENCE
) -> Against | None:
    """Compare a new version with another on the images that both have answered, of the classes that
    both know (`dynammo.evaluation.gate.compare`).

    Args:
        version: evaluated on its tests.
        other: likewise; of the same batches its tests hold the same images.
        context: places.
        confidence: of the intervals.

    Returns:
        None where nothing has been answered by both.
    """
    if "counts" in version:
        outcome = _common_counts(version, other.number, context)
        evidence = [version["counts"]["sha256"]]
        return outcome and Against(outcome, compare(outcome, confidence=confidence), evidence)
    evaluated = other.version["stage"]["methods"][DEPLOYED]["evaluated"]
    outcome = _common_answers(version, other.version, context)
    if outcome is None or evaluated is None or evaluated["predictions"] is None:
        return None
    compared = compare(outcome, confidence=confidence)
    return Against(outcome, compared, [evaluated["predictions"]["sha256"]])


def _common_answers(new: Draft, old: Draft, context: Context) -> Outcome | None:
    """What two versions say of the images that both have answered; none if there are no such."""
    ours, theirs = answers_of(new, context), answers_of(old, context)
    known = set(known_classes(new["stage"]))
    both = [name for name in known_classes(old["stage"]) if name in known]
    if not both or not ours or not theirs:
        return None
    others = [
        name
        for version in (old, new)
        for name in known_classes(version["stage"])
        if name not in both
    ]
    index = {name: number for number, name in enumerate([*both, *others])}
    targets: list[int] = []
    before: list[int] = []
    after: list[int] = []
    groups: list[str | None] = []
    for test in new["tests"]:
        mine, other = ours.get(test["batch"]), theirs.get(test["batch"])
        if mine is None or other is None:
            continue
        owner = groups_of(test, context)
        for place, actual in enumerate(mine.actual):
            if index.get(actual, len(both)) < len(both):
                targets.append(index[actual])
                before.append(index[other.predicted[place]])
                after.append(index[mine.predicted[place]])
                groups.append(owner[place])
    return Outcome(
        np.array(targets, dtype=np.int64),
        np.array(before, dtype=np.int64),
        np.array(after, dtype=np.int64),
        groups,
        both,
        others,
    )


def _common_counts(version: Draft, other: int, context: Context) -> Outcome | None:
    """Likewise, of what sites counted: every image is of a patient of its own, and a wrong answer
    is -1 whatever it was.
    """
    paired = counts_of(version, context).paired.get(other)
    if paired is None or not paired.sum():
        return None
    names = known_classes(version["stage"])
    both = [index for index, name in enumerate(names) if paired[index].sum()]
    table = paired[both].numpy()
    target, old, new = (np.repeat(axis.ravel(), table.ravel()) for axis in np.indices(table.shape))
    return Outcome(
        target,
        np.where(old == 1, target, -1),
        np.where(new == 1, target, -1),
        [None] * len(target),
        [names[index] for index in both],
    )


def counts_of(version: Draft, context: Context) -> Counts:
    """What sites counted of a version that has counts."""
    return Counts.of(context.checkpoints.load_json(version["counts"]))


def groups_of(test: Tested, context: Context) -> list[str | None]:
    """The keyed hash of each image's group; none where it has none."""
    owner = rows(context.checkpoints.load(test["kept"]["labels"])["groups"])
    return [None if group == NOBODY else group.hex() for group in owner]


def decide(
    config: Config,
    version: Draft,
    recall: float | None,
    champion: Other | None,
    comparison: Comparison | None,
) -> Decision:
    """The gate's decision on a new version.

    Args:
        config: of the new version.
        version: the new version.
        recall: its mean class recall, if it has a value.
        champion: the one in use, if there is one.
        comparison: with the champion.
    """
    if champion is None:
        return judge(config.gate, recall, None, champion=None)
    known = set(known_classes(version["stage"]))
    lost = [name for name in known_classes(champion.version["stage"]) if name not in known]
    seen = {batch["hash"] for batch in version["batches"]} | {*version["forgotten"]["batches"]}
    old = champion.version["batches"]
    missing = [str(batch["number"]) for batch in old if batch["hash"] not in seen]
    less = f"it has not seen batch {', '.join(missing)}" if missing else None
    if not less and "counts" in version:  # a site is known by its name, whatever it brings
        now = {batch["hash"]: batch["train_images"] for batch in version["batches"]}
        fewer = [
            str(batch["number"])
            for batch in old
            if now.get(batch["hash"], math.inf) < batch["train_images"]
        ]
        less = f"fewer images of batch {', '.join(fewer)}" if fewer else None
    return judge(
        config.gate,
        recall,
        comparison,
        champion=str(champion.number),
        lost_classes=lost,
        forgotten=version["forgotten"]["classes"],
        learnt_from_less=less,
    )


def answers_of(version: Draft, context: Context) -> dict[int, Answers]:
    """By batch. Classes of its tests that a version does not know follow those that it knows."""
    stage = version["stage"]
    evaluated = stage["methods"][DEPLOYED]["evaluated"]
    if evaluated is None or evaluated["predictions"] is None:
        return {}
    saved = context.checkpoints.load(evaluated["predictions"])
    names = known_classes(stage)
    found, start = {}, 0
    for test in version["tests"]:
        labels: Tensor = context.checkpoints.load(test["kept"]["labels"])["labels"]
        own = test["kept"]["names"]
        predicted = saved["predicted"][start : start + len(labels)]
        start += len(labels)
        found[test["batch"]] = Answers(
            [own[label] for label in labels.tolist()],
            [names[label] for label in predicted.tolist()],
        )
    assert start == len(saved["predicted"])  # the same sets in the same order
    return found
