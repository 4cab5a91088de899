"""Sets and alarms: what they promise, and that they keep it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dynammo.evaluation.appearance import KINDS
from dynammo.evaluation.honesty import (
    as_unknown,
    class_thresholds,
    left_out,
    measure_honesty,
    prediction_sets,
    quantile_of,
    rank,
    unknown_limits,
)
from dynammo.evaluation.metrics import Floats


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
    first, *others = as_unknown(left_out(shares, targets), targets)
    assert first == 1 and others == [0.5, 0.5]
    two = shares[:, :2], targets[:4]
    assert as_unknown(left_out(*two), two[1]) == [None, None]


def test_a_rank_is_the_share_that_is_less_strange() -> None:
    known = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank(np.array([0.0, 2.5, 4.0, 5.0]), known).tolist() == [0, 0.5, 0.75, 1.5]


def looked(shift: float, count: int, seed: int) -> Floats:
    """Measured appearances, normal with unit variance about `shift`."""
    return np.random.default_rng(seed).normal(shift, 1, (count, KINDS))


def test_a_class_that_looks_unlike_is_found_by_its_looks_alone() -> None:
    # The answers tell nothing of class 2; its pictures are 20 deviations from the others'.
    targets = np.repeat([0, 1, 2], [200, 200, 50])
    shares = np.full((450, 3), 1 / 3)
    looks = np.concatenate([looked(0, 400, 0), looked(20, 50, 1)])
    assert as_unknown(left_out(shares, targets), targets)[2] == 0.5
    assert as_unknown(left_out(shares, targets, looks), targets)[2] == 1
    named = {"groups": [None] * 450, "classes": ["a", "b", "c"], "alarm": 0.1}
    blind = measure_honesty(shares, targets, **named)  # type: ignore[arg-type]
    found = measure_honesty(shares, targets, looks=looks, **named)  # type: ignore[arg-type]
    assert blind["classes"]["c"]["found"] == 0 and found["classes"]["c"]["found"] == 1
    assert blind["alarms"]["by_appearance"] is None


def test_answers_and_looks_share_the_false_alarms() -> None:
    random, groups = np.random.default_rng(0), [None] * 4000
    targets = np.tile([0, 1, 2], 4000)[:4000]
    shares = random.dirichlet(np.ones(3), 4000)
    found = measure_honesty(
        shares, targets, groups, ["a", "b", "c"], alarm=0.1, looks=looked(0, 4000, 1)
    )
    alarms = found["alarms"]
    assert alarms["by_answer"] == pytest.approx(0.05, abs=0.01)
    assert alarms["by_appearance"] == pytest.approx(0.05, abs=0.01)
    assert alarms["share"] == pytest.approx(1 - 0.95**2, abs=0.015)  # either, independently


def test_limits_are_those_that_answers_go_by() -> None:
    shares, targets = np.random.default_rng(0).dirichlet(np.ones(3), 60), np.arange(60) % 3
    looks = looked(0, 60, 1)
    both = unknown_limits(shares, targets, looks, 0.1)
    assert both is not None and both.appearance is not None
    near, far = both.beyond(shares, looks)
    assert near.mean() <= 0.05 and far.mean() <= 0.05
    few = unknown_limits(shares[:30], targets[:30], looks[:30], 0.05)
    assert few is not None and few.appearance is None  # 0.025 of thirty: one limit is all
    assert unknown_limits(shares[:9], targets[:9], looks[:9], 0.05) is None


def test_half_the_images_too_few_for_both_limits_measure_nothing() -> None:
    shares, targets = np.random.default_rng(0).dirichlet(np.ones(3), 60), np.arange(60) % 3
    given = {"groups": [None] * 60, "classes": ["a", "b", "c"], "alarm": 0.05}
    found = measure_honesty(shares, targets, looks=looked(0, 60, 1), **given)  # type: ignore[arg-type]
    assert found["alarms"] == {"share": None, "by_answer": None, "by_appearance": None}
    assert found["classes"]["a"]["false_alarms"] is None
    assert found["classes"]["a"]["coverage"] is not None


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


def alarms_of(random: np.random.Generator, counts: list[int], by_class: bool) -> Floats:
    """Share of each class's further images called unknown; those of class 2 are stranger, in answer
    and look, by a deviation.
    """

    def drawn(targets: Floats) -> tuple[Floats, Floats]:
        odd = (targets == 2)[:, None]
        logits = random.normal(size=(len(targets), 3)) * np.where(odd, 1, 3)
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return shares, random.normal(size=(len(targets), KINDS)) * np.where(odd, 1.4, 1)

    targets, further = np.repeat([0, 1, 2], counts), np.repeat([0, 1, 2], 200)
    shares, looks = drawn(targets)
    limits = unknown_limits(shares, targets, looks, 0.1, by_class)
    assert limits is not None
    near, far = limits.beyond(*drawn(further))
    return np.array([(near | far)[further == c].mean() for c in range(3)])


@pytest.mark.parametrize("counts", [[60, 60, 40], [60, 60, 15]])
def test_by_class_a_strange_class_is_called_unknown_no_more_often_than_stated(
    counts: list[int],
) -> None:
    random = np.random.default_rng(0)
    together, alone = (
        np.mean([alarms_of(random, counts, by_class) for _ in range(60)], axis=0)
        for by_class in (False, True)
    )
    assert together[2] > 0.2  # of all together a tenth, of this class far more
    assert alone.max() < 0.11 and alone[2] > 0.04


def test_rare_classes_are_taken_together_and_too_few_images_promise_nothing() -> None:
    # At a tenth nine are enough: 0 is sure, 1 and 2, five each, have their strangest image decide.
    sure = np.concatenate([np.full(20, 0.99), np.linspace(0.5, 0.8, 10)])
    shares, targets = np.stack([sure, 1 - sure], axis=1), np.repeat([0, 1, 2], [20, 5, 5])
    limits = unknown_limits(shares, targets, None, 0.1, by_class=True)
    assert limits is not None and limits.threshold == pytest.approx(np.log(0.5))
    alone = unknown_limits(shares[:24], targets[:24], None, 0.1, by_class=True)
    # Four rare ones promise nothing: the class of twenty and all together decide.
    assert alone is not None and alone.threshold < np.log(0.5)
    assert unknown_limits(shares[:8], targets[:8], None, 0.1, by_class=True) is None
