"""Intervals: against SciPy's exact one, and what groups do to them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from dynammo.evaluation.intervals import bootstrap_interval, share_interval

RIGHT = np.array([True] * 7 + [False] * 3)


def test_with_an_image_a_group_it_is_clopper_and_pearsons() -> None:
    found = share_interval(RIGHT, [None] * 10, 0.9)
    exact = binomtest(7, 10).proportion_ci(0.9, method="exact")
    assert (found["images"], found["groups"], found["value"]) == (10, 10, 0.7)
    assert found["low"] == pytest.approx(exact.low)
    assert found["high"] == pytest.approx(exact.high)


def test_the_same_answer_for_all_images_of_a_patient_is_one_answer_a_patient() -> None:
    twice = share_interval(np.repeat(RIGHT, 2), np.repeat(np.arange(10), 2).tolist(), 0.95)
    once, alone = (share_interval(np.repeat(RIGHT, n), [None] * 10 * n, 0.95) for n in (1, 2))
    assert twice["low"] == pytest.approx(once["low"], abs=0.02)
    assert twice["low"] < alone["low"] - 0.05
    assert twice["high"] > alone["high"] + 0.02


def test_all_images_right_are_as_many_as_there_are_patients() -> None:
    found = share_interval(np.ones(40, dtype=bool), np.repeat(np.arange(4), 10).tolist(), 0.95)
    assert found["high"] == 1
    assert found["low"] == pytest.approx(0.025 ** (1 / 4))  # Clopper and Pearson of 4 of 4


@pytest.mark.parametrize(("images", "groups"), [(0, 0), (3, 1)])
def test_what_has_no_interval(images: int, groups: int) -> None:
    found = share_interval(np.ones(images, dtype=bool), ["a"] * images, 0.95)
    assert (found["images"], found["groups"]) == (images, groups)
    assert found["value"] == (1 if images else None)
    assert found["low"] is found["high"] is None


def test_the_exact_interval_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        chance = random.beta(8, 2, size=30)  # patients differ; 4 images of each
        hits = random.random((30, 4)) < chance[:, None]
        found = share_interval(hits.ravel(), np.repeat(np.arange(30), 4).tolist(), 0.9)
        assert found["low"] is not None and found["high"] is not None
        inside += found["low"] <= 0.8 <= found["high"]
    assert inside >= 0.87 * 300


def test_the_bootstrap_of_a_mean_is_as_wide_as_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(size=400)
    found = bootstrap_interval(lambda own: float(values[own].mean()), [None] * 400, 0.95)
    assert found["value"] == pytest.approx(values.mean())
    assert found["low"] is not None and found["high"] is not None
    width = 2 * 1.96 * values.std() / 20
    assert found["high"] - found["low"] == pytest.approx(width, rel=0.1)


def test_the_bootstrap_draws_whole_patients() -> None:
    values = np.repeat(np.random.default_rng(2).normal(size=40), 10)
    owner = np.repeat(np.arange(40), 10).tolist()
    grouped = bootstrap_interval(lambda own: float(values[own].mean()), owner, 0.95)
    alone = bootstrap_interval(lambda own: float(values[own].mean()), [None] * 400, 0.95)
    widths = [own["high"] - own["low"] for own in (grouped, alone)]  # type: ignore[operator]
    assert widths[0] > 2.5 * widths[1]  # sqrt(10)


def test_a_statistic_without_a_value_has_no_interval() -> None:
    found = bootstrap_interval(lambda own: None, [None] * 3, 0.95)
    assert found["value"] is found["low"] is found["high"] is None
