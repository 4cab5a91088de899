"""Sets and alarms: what they promise, and that they keep it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dynammo.evaluation.honesty import (
    as_unknown,
    class_thresholds,
    measure_honesty,
    prediction_sets,
    quantile_of,
)


@pytest.mark.parametrize(
    ("count", "miss", "expected"),
    [(19, 0.05, 19), (19, 0.1, 18), (9, 0.1, 9), (8, 0.1, math.inf), (0, 0.5, math.inf)],
)
def test_the_quantile(count: int, miss: float, expected: float) -> None:
    # ceil((19 + 1) 0.95) = 19; ceil(20 * 0.9) = 18; ceil(10 * 0.9) = 9; ceil(9 * 0.9) = 9 > 8.
    assert quantile_of(np.arange(count, 0.0, -1), miss) == expected


def test_sets_of_a_class_follow_its_own_images() -> None:
    # Class 0 is always sure, class 1 never: of one threshold for both, 1 would be missed.
    probabilities = np.array([[0.9, 0.1]] * 9 + [[0.7, 0.3]] * 9)
    targets = np.repeat([0, 1], 9)
    limits = class_thresholds(probabilities, targets, 0.1)
    assert limits.tolist() == pytest.approx([0.1, 0.7])
    sets = prediction_sets(np.array([[0.95, 0.05], [0.6, 0.4], [0.9, 0.3]]), limits)
    assert sets.tolist() == [[True, False], [False, True], [True, True]]
    few = class_thresholds(probabilities, np.repeat([0, 1], [15, 3]), 0.1)
    assert few[1] == math.inf  # three images promise nothing: the class is in every set


def test_every_class_is_covered_as_promised_also_a_rare_one() -> None:
    random = np.random.default_rng(0)
    covered = np.zeros(2)
    for _ in range(200):
        targets = np.repeat([0, 1, 0, 1], [200, 19, 200, 19])
        sure = np.clip(random.normal(np.where(targets == 0, 0.8, 0.4), 0.2), 0, 1)
        probabilities = np.where(np.eye(2)[targets] == 1, sure[:, None], 1 - sure[:, None])
        half = np.arange(438) < 219
        limits = class_thresholds(probabilities[half], targets[half], 0.1)
        sets = prediction_sets(probabilities[~half], limits)
        hits = sets[np.arange(219), targets[~half]]
        covered += [hits[targets[~half] == c].mean() / 200 for c in (0, 1)]
    assert covered == pytest.approx([0.9, 0.9], abs=0.015)


def test_a_class_left_out_is_told_apart_or_not() -> None:
    # Left out, 0 looks like nothing, 1 like 2 and 2 like 1; the others look like themselves.
    targets = np.repeat([0, 1, 2], 2)
    rows = [[0.90, 0.05, 0.05], [0.01, 0.50, 0.49], [0.01, 0.49, 0.50]]
    shares = np.repeat(rows, 2, axis=0)
    first, *others = as_unknown(shares, targets)
    assert first == 1 and others == [0.5, 0.5]
    assert as_unknown(shares[:, :2], targets[:4]) == [None, None]


def test_half_the_patients_calibrate_the_other_half() -> None:
    # Odd patients are sure and even ones are not: each half is measured by the other's threshold.
    targets = np.zeros(40, dtype=np.int64)
    sure = np.tile([0.9, 0.5], 20)
    found = measure_honesty(
        np.stack([sure, 1 - sure], axis=1),
        targets,
        [str(place % 2) for place in range(40)],
        ["a", "b"],
        alarm=0.05,
    )
    assert found["classes"]["a"]["coverage"] == 0.5
    assert found["classes"]["a"]["false_alarms"] == 0.5
    assert found["classes"]["b"]["coverage"] is None
    assert found["classes"]["b"]["images"] == 0
