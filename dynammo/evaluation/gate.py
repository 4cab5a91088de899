"""Whether a new version of a model may become champion: a comparison by class, and a decision.

Nothing here is read or written: `compare` takes what two versions say of the same images, `judge`
says what follows. Both return plain values that go into a JSON document as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from dynammo.config import GateConfig
from dynammo.evaluation.intervals import numbered, percentiles

DRAWS = 2000
_ROUNDING = 1e-9  # 0.80 - 0.75 exceeds 0.05 by rounding alone
_NAMED = 5  # so many classes a detail names: a database's column for a tag ends at 5000 characters


class Check(TypedDict):
    """One condition of the gate."""

    name: str
    passed: bool
    detail: str


class Decision(TypedDict):
    """What the gate says, and why."""

    passed: bool
    checks: list[Check]


class Outcome(NamedTuple):
    """What the champion (old) and the new version say of the same N images, in the same order.

    All images are of classes that both know. An answer may be any class: whatever differs from the
    target is wrong: from C on the answer is one of `others`, and -1 is not known which.

    Args:
        targets: (N,) integers, indices into `classes`.
        predicted_old: (N,) integers.
        predicted_new: (N,) integers.
        groups: N labels of what belongs together (patient, lesion); an image with None is a group
            of its own.
        classes: C >= 1 names.
        others: names of classes that one of the two answers with and the other does not know.
    """

    targets: NDArray[np.integer[Any]]
    predicted_old: NDArray[np.integer[Any]]
    predicted_new: NDArray[np.integer[Any]]
    groups: Sequence[str | int | None]
    classes: Sequence[str]
    others: Sequence[str] = ()

    @property
    def flipped(self) -> NDArray[np.bool_]:
        """(N,): the negative flips, right before and wrong now."""
        right_then: NDArray[np.bool_] = self.predicted_old == self.targets
        wrong_now: NDArray[np.bool_] = self.predicted_new != self.targets
        return right_then & wrong_now


class Change(TypedDict):
    """Recall in [0, 1] of the old and the new version, and of `difference` = new - old its 95 %
    interval from `low` to `high`.

    None where it is not measurable: recalls without images, the interval with fewer than two
    groups. `negative_flips` counts the images that the old version had right and the new has wrong.
    """

    images: int
    groups: int
    old: float | None
    new: float | None
    difference: float | None
    low: float | None
    high: float | None
    negative_flips: int


class Comparison(TypedDict):
    """By class, in the outcome's order; `overall` of the mean recall of classes with images."""

    classes: dict[str, Change]
    overall: Change
    not_measurable: list[str]


def compare(
    outcome: Outcome, *, draws: int = DRAWS, seed: int = 0, confidence: float = 0.95
) -> Comparison:
    """Compare two versions class by class on the same images, with a paired bootstrap by group.

    Of a class c with n_c images, r_c of them right:

        difference_c = (r_c,new - r_c,old) / n_c,    overall = mean over c of difference_c

    A draw takes as many groups as there are, with replacement, and with a group all its images and
    both versions' answers to them: images of one patient are not independent, nor are two answers
    to one image. The interval, if of 95 %, is from the 2.5 % to the 97.5 % quantile over the draws
    ("percentile interval"). A class that a draw happens to leave out is left out of that draw.

    Groups with the same counts n_c, r_c,old, r_c,new are the same for this purpose, so that a draw
    is one from the multinomial distribution over the different ones. The result depends neither on
    the order of the images nor on the labels of the groups.

    With few groups the interval is too narrow, the more so with few wrong answers: where no answer
    differs it is 0 to 0 however few the images.

    Sources: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; of groups:
    Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8. Negative flips:
    Yan et al. 2021.

    Args:
        outcome: the answers.
        draws: how many times groups are drawn.
        seed: of the draws; the same gives the same intervals.
        confidence: in (0, 1), of the two-sided intervals.

    Raises:
        ValueError: the outcome contradicts itself, or `draws` is below 1. All problems at once.
    """
    _check(outcome, draws)
    names = list(outcome.classes)
    own = np.eye(len(names))[outcome.targets]  # (N, C): 1 in the column of an image's class
    right = [
        own * (answers == outcome.targets)[:, None]
        for answers in (outcome.predicted_old, outcome.predicted_new)
    ]
    flips = (own * outcome.flipped[:, None]).sum(axis=0)
    group = numbered(outcome.groups)
    counts = np.zeros((group.max(initial=-1) + 1, 3, len(names)))  # images, right old, right new
    np.add.at(counts, group, np.stack([own, *right], axis=1))
    once = _recalls(counts.sum(axis=0, keepdims=True))[0]
    drawn = _recalls(_draw(counts, draws, np.random.default_rng(seed)))
    images, groups = counts[:, 0].sum(axis=0), np.count_nonzero(counts[:, 0], axis=0)
    changes = {
        name: _change(images[c], groups[c], flips[c], once[:, c], drawn[:, :, c], confidence)
        for c, name in enumerate(names)
    }
    means = _class_mean(once), _class_mean(drawn)
    overall = _change(images.sum(), len(counts), flips.sum(), *means, confidence)
    return {
        "classes": changes,
        "overall": overall,
        "not_measurable": [name for name, change in changes.items() if not change["images"]],
    }


def judge(
    config: GateConfig,
    recall: float | None,
    comparison: Comparison | None,
    *,
    champion: str | None,
    lost_classes: Sequence[str] = (),
    forgotten: Collection[str] = (),
    learnt_from_less: str | None = None,
    not_comparable: str | None = None,
) -> Decision:
    """Decide whether a new version of a learner may become champion: all conditions must hold.

    With a champion the comparison is always demanded, whatever `GateConfig.beat_champion` says:
    what could not be shown does not hold. Who promotes a version all the same has a reason, which
    `tasks.support.mlflow.champion.promote` records.

    **A class's loss** stops a version where the loss measured exceeds `max_class_loss`, whether or
    not the interval says that it may be chance. To ask for a significant loss would let through
    what is worst: a class of ten images is significantly worse from four lost images on. To ask
    for an interval that ends within the limit would let hardly anything through: of two versions
    equally good that answer one image in ten differently, it stops a class of 40 images more than
    every third time. So chance counts against the new version, and the interval tells who looks
    into it how much of the loss may be chance. A class that both know but that has no images stops
    a version too: nobody knows what it lost.

    How often chance alone does so with two such versions, for a class of so many images:

        images a class                   9     10     20     50    100
        max_class_loss 0.1 (default)  26 %    6 %    4 %    1 %   <1 %
        max_class_loss 0.05           26 %   28 %   13 %   13 %    4 %

    With 0.1 a class of ten may have one right answer less and a class of nine none. Hence the
    default; where classes have hundreds of images, a lower limit is better. The limit holds
    against the present champion: losses of several versions in a row add up, and only
    `min_last_recall` bounds their sum.

    Args:
        config: the conditions.
        recall: mean class recall of the new version over all its classes, if it has a value.
        comparison: with the champion, on the classes both know.
        champion: its version; None if there is none yet, and the conditions about it hold.
        lost_classes: what the champion knows and the new version does not.
        forgotten: the classes that were removed on purpose: their loss is named and allowed.
        learnt_from_less: what the new version saw less of than the champion, in words.
        not_comparable: why the two cannot be compared, in words.

    Raises:
        ValueError: something is said about a champion, and there is none.
    """
    if champion is None and (comparison or lost_classes or learnt_from_less or not_comparable):
        raise ValueError("a comparison with a champion needs the champion's version, got None")
    return decide(
        [
            recall_check(config, recall),
            _comparable(champion, comparison, not_comparable),
            _class_loss(config, champion, comparison),
            _kept(champion, lost_classes, forgotten),
            _learnt(champion, learnt_from_less),
        ]
    )


def decide(checks: list[Check]) -> Decision:
    """A decision: passed where all of the checks are."""
    return {"passed": all(check["passed"] for check in checks), "checks": checks}


def recall_check(config: GateConfig, recall: float | None) -> Check:
    """The last mean class recall has a value, and one of at least `min_last_recall`."""
    if recall is None:
        passed, detail = False, "the last mean class recall has no value"
    else:
        passed = not_below(recall, config.min_last_recall)
        detail = f"last mean class recall {recall:.2%}, at least {config.min_last_recall:.2%}"
    return {"name": "min_last_recall", "passed": passed, "detail": detail}


def unmerged_check(config: GateConfig, recall: float | None, unmerged: float | None) -> Check:
    """Unmerged is at most `max_gap_to_unmerged` better; holds where there is nothing to compare."""
    if unmerged is None:
        passed, detail = True, "unmerged was not evaluated: not compared"
    elif recall is None:
        passed, detail = True, "merged has no value: not compared with unmerged"
    else:
        gap = unmerged - recall
        passed = not_below(config.max_gap_to_unmerged, gap)
        detail = (
            f"unmerged {unmerged:.2%}, {_points(gap)} points from merged, at most "
            f"{_points(config.max_gap_to_unmerged)}"
        )
    return {"name": "max_gap_to_unmerged", "passed": passed, "detail": detail}


def not_below(value: float, limit: float) -> bool:
    """Whether value >= limit but for rounding; a NaN is below everything."""
    return value >= limit - _ROUNDING


def _comparable(
    champion: str | None, comparison: Comparison | None, not_comparable: str | None
) -> Check:
    passed = False
    if champion is None:
        passed, detail = True, "there is no champion yet"
    elif not_comparable:
        detail = f"cannot be compared with champion {champion}: {not_comparable}"
    elif comparison is None:
        detail = f"was not compared with champion {champion}"
    elif comparison["overall"]["difference"] is None:
        detail = (
            f"cannot be compared with champion {champion}: no image is of a class that both know"
        )
    else:
        measured = len(comparison["classes"]) - len(comparison["not_measurable"])
        passed = True
        detail = (
            f"with champion {champion} on {measured} classes that both know: mean class recall "
            f"{_told(comparison['overall'])}"
        )
    return {"name": "comparable", "passed": passed, "detail": detail}


def _class_loss(config: GateConfig, champion: str | None, comparison: Comparison | None) -> Check:
    if champion is None:
        passed, detail = True, "there is no champion yet"
    elif comparison is None:
        passed, detail = False, "what old classes lose is not known"
    else:
        limit = f"{100 * config.max_class_loss:.2f} points"
        losses = {
            name: -change["difference"]
            for name, change in comparison["classes"].items()
            if change["difference"] is not None
        }
        worst = sorted(losses, key=lambda name: -losses[name])
        failed = [name for name in worst if not not_below(config.max_class_loss, losses[name])]
        unknown = [name for name in comparison["classes"] if name not in losses]
        told = {name: f"{name} {_told(comparison['classes'][name])}" for name in worst}
        parts = []
        if failed:
            parts.append(f"more than {limit} lost: {_list([told[name] for name in failed])}")
        elif worst:
            parts.append(f"no class loses more than {limit}; most: {told[worst[0]]}")
        if unknown:
            parts.append(f"no images, so that a loss is not known: {_list(unknown)}")
        passed = not failed and not unknown
        detail = "; ".join(parts)
    return {"name": "max_class_loss", "passed": passed, "detail": detail}


def _kept(champion: str | None, lost: Sequence[str], forgotten: Collection[str]) -> Check:
    missing = [name for name in lost if name not in forgotten]
    meant = [name for name in lost if name in forgotten]
    if champion is None:
        detail = "there is no champion yet"
    else:
        parts = []
        if missing:
            parts.append(f"champion {champion} knows, and this version does not: {_list(missing)}")
        if meant:
            parts.append(f"forgotten on purpose: {_list(meant)}")
        detail = "; ".join(parts) or f"all classes of champion {champion} are known"
    return {"name": "classes_kept", "passed": not missing, "detail": detail}


def _learnt(champion: str | None, less: str | None) -> Check:
    if champion is None:
        detail = "there is no champion yet"
    elif less:
        detail = f"learnt from less than champion {champion}: {less}"
    else:
        detail = f"learnt from no less than champion {champion}"
    return {"name": "learnt_from_no_less", "passed": not less, "detail": detail}


def _told(change: Change) -> str:
    """`92.00% -> 80.00% of 25 images (-12.00 points, 95 % interval -28.00 to +4.00, ...)`."""
    assert change["difference"] is not None
    if change["low"] is None or change["high"] is None:
        interval = "no interval from one group"
    else:
        interval = f"95 % interval {_points(change['low'])} to {_points(change['high'])}"
    images = "1 image" if change["images"] == 1 else f"{change['images']} images"
    return (
        f"{change['old']:.2%} -> {change['new']:.2%} of {images} "
        f"({_points(change['difference'])} points, {interval}, "
        f"{change['negative_flips']} no longer right)"
    )


def _points(share: float) -> str:
    return f"{round(100 * share, 2) + 0.0:+.2f}"  # + 0.0: a rounding error below 0 is no -0.00


def _list(texts: Sequence[str]) -> str:
    more = len(texts) - _NAMED
    return ", ".join(texts[:_NAMED]) + (f", and {more} more" if more > 0 else "")


def _check(outcome: Outcome, draws: int) -> None:
    problems = []
    count, classes = np.size(outcome.targets), len(outcome.classes)
    for name in ("targets", "predicted_old", "predicted_new"):
        values = getattr(outcome, name)
        if values.shape != (count,):
            problems.append(f"{name} must have shape ({count},) like targets, got {values.shape}")
        if values.dtype.kind not in "iu":
            problems.append(f"{name} must be integers, got {values.dtype}")
    if len(outcome.groups) != count:
        problems.append(f"groups must be {count}, one an image, got {len(outcome.groups)}")
    if not classes:
        problems.append("classes must name at least one class")
    if len(set(outcome.classes)) != classes:
        problems.append(f"classes must differ, got {', '.join(outcome.classes)}")
    if count and not 0 <= outcome.targets.min() <= outcome.targets.max() < classes:
        low, high = outcome.targets.min(), outcome.targets.max()
        problems.append(f"targets must lie in [0, {classes}), got {low} to {high}")
    if draws < 1:
        problems.append(f"draws must be at least 1, got {draws}")
    if problems:
        raise ValueError("; ".join(problems))


def _draw(
    counts: NDArray[np.floating[Any]], draws: int, random: np.random.Generator
) -> NDArray[np.floating[Any]]:
    """(draws, 3, C): sums over G groups drawn with replacement from (G, 3, C)."""
    if not len(counts):
        return np.zeros((draws, *counts.shape[1:]))
    kinds, times = np.unique(counts.reshape(len(counts), -1), axis=0, return_counts=True)
    weights = random.multinomial(len(counts), times / len(counts), size=draws)
    # Floats hold such counts exactly, and their product is quick where that of integers is not.
    drawn: NDArray[np.floating[Any]] = weights.astype(float) @ kinds
    return drawn.reshape(draws, *counts.shape[1:])


def _recalls(counts: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """(B, 3, C) counts to (B, 2, C) recalls, old and new; NaN without images."""
    with np.errstate(invalid="ignore"):
        recalls: NDArray[np.floating[Any]] = counts[:, 1:] / counts[:, :1]
    return recalls


def _class_mean(recalls: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """(..., C) to (...): the mean over the classes that have a recall; NaN if none has."""
    tested = ~np.isnan(recalls)
    with np.errstate(invalid="ignore"):
        means: NDArray[np.floating[Any]] = np.nansum(recalls, axis=-1) / tested.sum(axis=-1)
    return means


def _change(
    images: float,
    groups: int,
    flips: float,
    once: NDArray[np.floating[Any]],
    drawn: NDArray[np.floating[Any]],
    confidence: float,
) -> Change:
    """From recalls (2,) of all images, old and new, and (draws, 2) of the draws."""
    change: Change = {
        "images": int(images),
        "groups": int(groups),
        "old": None,
        "new": None,
        "difference": None,
        "low": None,
        "high": None,
        "negative_flips": int(flips),
    }
    if images:
        old, new = once.tolist()
        change |= {"old": old, "new": new, "difference": new - old}
    if groups > 1:
        differences = drawn[:, 1] - drawn[:, 0]
        differences = differences[~np.isnan(differences)]
        low, high = percentiles(differences, confidence)
        change |= {"low": low, "high": high}
    return change
