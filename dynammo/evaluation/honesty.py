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

from dynammo.evaluation.intervals import numbered
from dynammo.evaluation.metrics import Floats, Integers, open_set_auroc
from dynammo.evaluation.strangeness import strangeness

MISS = 0.1  # share of a class's prediction sets that may lack it, where nothing else is said


class ClassHonesty(TypedDict):
    """Of a class's test images: the share whose set holds the class (`coverage`), the mean size of
    the sets, and the share called unknown. `as_unknown` is the AUROC of telling the class from the
    others as if it were unknown. None without images.
    """

    images: int
    coverage: float | None
    set_size: float | None
    false_alarms: float | None
    as_unknown: float | None


class Honesty(TypedDict):
    """What the answers are worth: `miss` is the share of a class's sets that may lack it, and
    `alarm` the share of known images that may be called unknown.
    """

    miss: float
    alarm: float
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


def as_unknown(probabilities: Floats, targets: Integers) -> list[float | None]:
    """AUROC of telling each class from the others as if it were unknown: it is left out of the
    answers, whose other probabilities then sum to 1.

    An estimate where no image of an unknown class is at hand, and a friendly one: the network and
    the covariance have seen the class. None without images of it or of others, or with a single
    other class.
    """
    found: list[float | None] = []
    for c in range(probabilities.shape[1]):
        others = np.delete(probabilities, c, axis=1)
        if others.shape[1] < 2:
            found.append(None)
            continue
        shares = others / np.maximum(others.sum(axis=1, keepdims=True), np.finfo(float).tiny)
        found.append(open_set_auroc(targets != c, -strangeness(shares)))
    return found


def measure_honesty(
    probabilities: Floats,
    targets: Integers,
    groups: Sequence[str | None],
    classes: Sequence[str],
    *,
    alarm: float,
    miss: float = MISS,
) -> Honesty:
    """What sets and alarms do on images that they were not calibrated on.

    Every other patient's images calibrate and the rest are measured, then the other way round.

    Args:
        probabilities: (N, C) of test images.
        targets: (N,) in [0, C).
        groups: N labels of patients.
        classes: C names.
        alarm: share of known images that may be called unknown.
        miss: of the sets.
    """
    second = numbered(groups) % 2 == 1
    sets = np.zeros(probabilities.shape, dtype=bool)
    alarms = np.zeros(len(targets), dtype=bool)
    strange = strangeness(probabilities)
    for own in (second, ~second):
        if not own.any():
            continue
        limits = class_thresholds(probabilities[~own], targets[~own], miss)
        sets[own] = prediction_sets(probabilities[own], limits)
        alarms[own] = strange[own] > quantile_of(strange[~own], alarm)
    apart = as_unknown(probabilities, targets)
    found: dict[str, ClassHonesty] = {}
    for c, name in enumerate(classes):
        mine = targets == c
        some = bool(mine.any())
        found[name] = {
            "images": int(mine.sum()),
            "coverage": float(sets[mine, c].mean()) if some else None,
            "set_size": float(sets[mine].sum(axis=1).mean()) if some else None,
            "false_alarms": float(alarms[mine].mean()) if some else None,
            "as_unknown": apart[c],
        }
    return {"miss": miss, "alarm": alarm, "classes": found}
