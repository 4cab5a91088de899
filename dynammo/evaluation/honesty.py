"""Answers that say how sure they are: "none of the diseases I know", and sets of possible classes.

Both stand on images that the model has not learnt from, the calibration images. The promise holds
for images that come as those did (exchangeable with them): a new scanner may break it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from dynammo.evaluation.appearance import distances_of_others, fit
from dynammo.evaluation.intervals import numbered
from dynammo.evaluation.metrics import (
    Floats,
    Integers,
    classwise_calibration_error,
    open_set_auroc,
)
from dynammo.evaluation.strangeness import UnknownLimits, strangeness

MISS = 0.1  # share of a class's prediction sets that may lack it, where nothing else is said


class ClassHonesty(TypedDict):
    """Of a class's test images: the share whose set holds the class (`coverage`), the mean size of
    the sets, and the share called unknown. `found` is the share that would be called so if the
    class were unknown, and `as_unknown` the AUROC of telling it from the others then (`left_out`).
    `calibration` is the class's `classwise_calibration_error`. None without images, or where too
    few images set thresholds.
    """

    images: int
    coverage: float | None
    set_size: float | None
    false_alarms: float | None
    found: float | None
    as_unknown: float | None
    calibration: float | None


class Alarms(TypedDict):
    """Share of all known images called unknown, and what is so `by_answer` or `by_appearance`
    alone; an image may be both. None where too few images set thresholds, or where answers do not
    go by the appearance.
    """

    share: float | None
    by_answer: float | None
    by_appearance: float | None


class Honesty(TypedDict):
    """What the answers are worth: `miss` is the share of a class's sets that may lack it, and
    `alarm` the share of known images that may be called unknown, `by_class` or of all together.
    """

    miss: float
    alarm: float
    by_class: bool
    alarms: Alarms
    classes: dict[str, ClassHonesty]


def quantile_of(scores: Floats, miss: float) -> float:
    """The threshold that a further score exceeds with a chance of at most `miss`.

    The k-th smallest of n scores, k = ceil((n + 1) (1 - miss)); infinity where k > n, for so few
    scores promise nothing.

    Source: Vovk et al., Algorithmic Learning in a Random World, 2005; Lei et al. 2018, lemma 2.1.
    """
    count = len(scores)
    # Rounded before it is rounded up: 20 * 0.95 is 19, not a little more.
    place = math.ceil(round((count + 1) * (1 - miss), 9))
    return math.inf if place > count else float(np.sort(scores)[place - 1])


def class_thresholds(probabilities: Floats, targets: Integers, miss: float) -> Floats:
    """Split conformal thresholds, class by class ("Mondrian"): (C,).

    Of class c the scores are 1 - p_c on the calibration images of class c, so that its sets miss it
    in at most a share `miss` of its images, however rare it is. Infinity where a class has too few.

    Args:
        probabilities: (N, C).
        targets: (N,) in [0, C).
        miss: in (0, 1).

    Source: Vovk 2012 (arXiv 1209.2673), conditional validity.
    """
    return np.array(
        [
            quantile_of(1 - probabilities[targets == c, c], miss)
            for c in range(probabilities.shape[1])
        ]
    )


def prediction_sets(probabilities: Floats, thresholds: Floats) -> NDArray[np.bool_]:
    """(N, C): which classes an image may be of. May be empty: of none that is known."""
    found: NDArray[np.bool_] = 1 - probabilities <= thresholds
    return found


def unknown_limits(
    probabilities: Floats,
    targets: Integers,
    looks: Floats | None,
    alarm: float,
    by_class: bool = False,
) -> UnknownLimits | None:
    """From where on an image is called unknown, so that at most a share `alarm` of known ones is.

    Where pictures were measured and there are enough of them, either limit may give half of the
    false alarms; else the answers' strangeness alone. None of too few images for that.

    Args:
        probabilities: (N, C) of images of known classes that the model has not learnt from.
        targets: (N,) in [0, C).
        looks: (N, K) of `dynammo.evaluation.appearance.measure`; None: not measured.
        alarm: in (0, 1).
        by_class: at most a share `alarm` of each class's images, see `_limits_by_class`.
    """
    strange = strangeness(probabilities)
    if by_class:
        return _limits_by_class(strange, targets, looks, alarm)
    if looks is not None and math.isfinite(near := quantile_of(strange, alarm / 2)):
        far = quantile_of(distances_of_others(looks, targets), alarm / 2)
        return UnknownLimits(near, fit(looks, targets), far)
    limit = quantile_of(strange, alarm)
    return UnknownLimits(limit, None, math.inf) if math.isfinite(limit) else None


def _limits_by_class(
    strange: Floats, targets: Integers, looks: Floats | None, alarm: float
) -> UnknownLimits | None:
    """The limits that the class with the strangest images needs: those of no class are called
    unknown in more than a share `alarm`.

    An image's score is the higher of its two places, by strangeness and by distance, among those of
    all images. Both limits are at the place that a further image of each class exceeds with a
    chance of at most `alarm`. A class with fewer than 1 / alarm - 1 images promises nothing by
    itself; such rare ones are taken together.

    Source: Vovk 2012 (arXiv 1209.2673), conditional validity; rare classes together: Ding et al.
        2023 (arXiv 2306.09335).
    """
    scores = [strange] if looks is None else [strange, distances_of_others(looks, targets)]
    ordered = [np.sort(own) for own in scores]
    pairs = zip(ordered, scores, strict=True)
    place = np.max([np.searchsorted(known, own) for known, own in pairs], axis=0)
    of_class = {c: quantile_of(place[targets == c], alarm) for c in np.unique(targets).tolist()}
    rare = np.isin(targets, [c for c, limit in of_class.items() if math.isinf(limit)])
    asked = [*of_class.values(), quantile_of(place[rare], alarm), quantile_of(place, alarm)]
    needed = int(max([limit for limit in asked if math.isfinite(limit)], default=-1))
    if needed < 0:
        return None
    near, *far = (float(own[needed]) for own in ordered)
    if looks is None:
        return UnknownLimits(near, None, math.inf)
    return UnknownLimits(near, fit(looks, targets), far[0])


def left_out(probabilities: Floats, targets: Integers, looks: Floats | None = None) -> Floats:
    """(N, C): how strange images are if class c is left out of the answers, whose other
    probabilities then sum to 1, and of the appearance. NaN with a single other class.

    An estimate where no image of an unknown class is at hand, and a friendly one: the network and
    the covariance have seen the class.

    Args:
        probabilities: (N, C).
        targets: (N,) in [0, C).
        looks: (N, K) of `dynammo.evaluation.appearance.measure`, where answers go by it.
    """
    found = np.full(probabilities.shape, np.nan)
    for c in range(probabilities.shape[1] if probabilities.shape[1] > 2 else 0):
        energy, known = strangeness(_without(probabilities, c)), targets != c
        found[:, c] = energy if looks is None else together(energy, targets, looks, known)
    return found


def together(energy: Floats, targets: Integers, looks: Floats, known: NDArray[np.bool_]) -> Floats:
    """(N,): how strange images are by their answers or by their appearance: the larger of the
    shares of known images that are less strange. What is stranger than all of them is told apart by
    how much.

    Args:
        energy: (N,) of `strangeness`.
        targets: (N,).
        looks: (N, K).
        known: (N,), which images are of known classes.
    """
    if not known.any():
        return energy
    distance = np.empty(len(energy))
    distance[known] = distances_of_others(looks[known], targets[known])
    distance[~known] = fit(looks[known], targets[known]).distance(looks[~known])
    return np.maximum(rank(energy, energy[known]), rank(distance, distance[known]))


def rank(values: Floats, known: Floats) -> Floats:
    """(N,): share of the known values that are less; beyond all of them from 1 to 2."""
    own = np.sort(known)
    over = np.maximum(values - own[-1], 0)
    found: Floats = np.searchsorted(own, values) / len(own) + over / (1 + over)
    return found


def as_unknown(strange: Floats, targets: Integers) -> list[float | None]:
    """AUROC of telling each class from the others as if it were unknown.

    None without images of it or of others, or with a single other class.

    Args:
        strange: (N, C) of `left_out`.
        targets: (N,) in [0, C).
    """
    return [
        None if np.isnan(own).any() else open_set_auroc(targets != c, -own)
        for c, own in enumerate(strange.T)
    ]


def _without(probabilities: Floats, c: int) -> Floats:
    others = np.delete(probabilities, c, axis=1)
    found: Floats = others / np.maximum(others.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    return found


def _found(
    probabilities: Floats,
    targets: Integers,
    looks: Floats | None,
    alarm: float,
    by_class: bool,
    c: int,
) -> float | None:
    """Share of a class's images that would be called unknown, by limits of the others' images."""
    mine = targets == c
    if probabilities.shape[1] < 3 or not mine.any():
        return None
    shares = _without(probabilities, c)
    limits = unknown_limits(shares[~mine], targets[~mine], _rows(looks, ~mine), alarm, by_class)
    if limits is None:
        return None
    near, far = limits.beyond(shares[mine], _rows(looks, mine))
    return float((near | far).mean())


def _rows(looks: Floats | None, chosen: NDArray[np.bool_]) -> Floats | None:
    return None if looks is None else looks[chosen]


def measure_honesty(
    probabilities: Floats,
    targets: Integers,
    groups: Sequence[str | None],
    classes: Sequence[str],
    *,
    alarm: float,
    by_class: bool = False,
    miss: float = MISS,
    looks: Floats | None = None,
) -> Honesty:
    """What sets and alarms do on images that they were not calibrated on.

    Every other patient's images calibrate and the rest are measured, then the other way round.

    Args:
        probabilities: (N, C) of test images.
        targets: (N,) in [0, C).
        groups: N labels of patients.
        classes: C names.
        alarm: share of known images that may be called unknown.
        by_class: of each class, by limits for each (`unknown_limits`).
        miss: of the sets.
        looks: (N, K) of `dynammo.evaluation.appearance.measure`, where the answers go by it.
    """
    second = numbered(groups) % 2 == 1
    sets = np.zeros(probabilities.shape, dtype=bool)
    near, far = np.zeros((2, len(targets)), dtype=bool)
    set_by = []
    for own in (second, ~second):
        if not own.any():
            continue
        limits = class_thresholds(probabilities[~own], targets[~own], miss)
        sets[own] = prediction_sets(probabilities[own], limits)
        unknown = unknown_limits(
            probabilities[~own], targets[~own], _rows(looks, ~own), alarm, by_class
        )
        set_by.append(unknown)
        if unknown is not None:
            near[own], far[own] = unknown.beyond(probabilities[own], _rows(looks, own))
    # Half the images may be too few for what the answers go by: then nothing is measured.
    enough = all(own is not None and (own.appearance is None) == (looks is None) for own in set_by)
    alarms = near | far
    apart = as_unknown(left_out(probabilities, targets, looks), targets)
    calibration = classwise_calibration_error(targets, probabilities)
    found: dict[str, ClassHonesty] = {}
    for c, name in enumerate(classes):
        mine = targets == c
        some = bool(mine.any())
        found[name] = {
            "images": int(mine.sum()),
            "coverage": float(sets[mine, c].mean()) if some else None,
            "set_size": float(sets[mine].sum(axis=1).mean()) if some else None,
            "false_alarms": float(alarms[mine].mean()) if some and enough else None,
            "found": _found(probabilities, targets, looks, alarm, by_class, c),
            "as_unknown": apart[c],
            "calibration": float(calibration[c]) if some else None,
        }
    shares: Alarms = {
        "share": float(alarms.mean()) if enough else None,
        "by_answer": float(near.mean()) if enough else None,
        "by_appearance": float(far.mean()) if enough and looks is not None else None,
    }
    return {
        "miss": miss,
        "alarm": alarm,
        "by_class": by_class,
        "alarms": shares,
        "classes": found,
    }
