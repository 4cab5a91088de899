"""Compare a new version of a learner with the champion, and let the gate decide."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from prefect import task
from torch import Tensor

from dynammo.config import Config
from dynammo.data.marks import NOBODY, rows
from dynammo.evaluation.gate import Comparison, Decision, Outcome, compare, judge
from dynammo.learner.settings import DEPLOYED
from tasks.support.stage import Stage, known_classes
from tasks.support.version import Forgotten, Tested, Version
from tasks.support.workspace import Context


class Answers(NamedTuple):
    """What a version says of a test set: class names of each image, actual and predicted."""

    actual: list[str]
    predicted: list[str]


def answers_known(old: Version, tests: list[Tested]) -> bool:
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


@task(name="compare with champion")
def compare_with_champion(
    new: Stage,
    tests: list[Tested],
    old: Stage,
    old_tests: list[Tested],
    context: Context,
) -> Comparison | None:
    """`dynammo.evaluation.gate.compare` of `common_answers`."""
    outcome = common_answers(new, tests, old, old_tests, context)
    return None if outcome is None else compare(outcome)


def common_answers(
    new: Stage,
    tests: list[Tested],
    old: Stage,
    old_tests: list[Tested],
    context: Context,
) -> Outcome | None:
    """What two versions say of the images that both have answered, of the classes both know.

    Args:
        new: evaluated on `tests`.
        tests: test sets.
        old: the champion, evaluated on `old_tests`.
        old_tests: test sets; of the same batches they hold the same images.
        context: places.

    Returns:
        None where nothing has been answered by both.
    """
    ours, theirs = answers_of(new, tests, context), answers_of(old, old_tests, context)
    both = [name for name in known_classes(old) if name in set(known_classes(new))]
    if not both or not ours or not theirs:
        return None
    index = {name: number for number, name in enumerate(both)}
    targets: list[int] = []
    before: list[int] = []
    after: list[int] = []
    groups: list[str | None] = []
    for test in tests:
        mine, other = ours.get(test["batch"]), theirs.get(test["batch"])
        if mine is None or other is None:
            continue
        owner = groups_of(test, context)
        for place, actual in enumerate(mine.actual):
            if actual in index:
                targets.append(index[actual])
                before.append(index.get(other.predicted[place], -1))
                after.append(index.get(mine.predicted[place], -1))
                groups.append(owner[place])
    return Outcome(
        np.array(targets, dtype=np.int64),
        np.array(before, dtype=np.int64),
        np.array(after, dtype=np.int64),
        groups,
        both,
    )


def groups_of(test: Tested, context: Context) -> list[str | None]:
    """The keyed hash of each image's group; none where it has none."""
    owner = rows(context.checkpoints.load(test["kept"]["labels"])["groups"])
    return [None if group == NOBODY else group.hex() for group in owner]


def decide(
    config: Config,
    recall: float | None,
    comparison: Comparison | None,
    champion: Version | None,
    number: int,
    new: Stage,
    batches: list[str],
    forgotten: Forgotten,
) -> Decision:
    """The gate's decision on a new version.

    Args:
        config: of the new version.
        recall: its mean class recall, if it has a value.
        comparison: with the champion.
        champion: the champion's document; none if there is none.
        number: the champion's.
        new: the new version's stage.
        batches: hashes of the batches that it has learnt.
        forgotten: what was taken out of it.
    """
    if champion is None:
        return judge(config.gate, recall, None, champion=None)
    known = set(known_classes(new))
    lost = [name for name in known_classes(champion["stage"]) if name not in known]
    missing = [
        str(batch["number"])
        for batch in champion["batches"]
        if batch["hash"] not in (*batches, *forgotten["batches"])
    ]
    less = f"it has not seen batch {', '.join(missing)}" if missing else None
    return judge(
        config.gate,
        recall,
        comparison,
        champion=str(number),
        lost_classes=lost,
        forgotten=forgotten["classes"],
        learnt_from_less=less,
    )


def answers_of(stage: Stage, tests: list[Tested], context: Context) -> dict[int, Answers]:
    """By batch. The classes of `tests` that the stage does not know follow those that it knows."""
    evaluated = stage["methods"][DEPLOYED]["evaluated"]
    if evaluated is None or evaluated["predictions"] is None:
        return {}
    saved = context.checkpoints.load(evaluated["predictions"])
    names = known_classes(stage)
    found, start = {}, 0
    for test in tests:
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
