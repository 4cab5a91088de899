"""Means, deviations and paired tests, against SciPy and by hand."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
from scipy import stats

from dynammo.evaluation.significance import compare_paired, spread


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def by_seed(*values: float | None) -> dict[int, float | None]:
    return dict(enumerate(values))


def test_spread() -> None:
    # Deviations from 2: -1, 0, 1; their squares add up to 2, over n - 1 = 2.
    assert spread([1.0, None, 2.0, 3.0]) == (2.0, 1.0, 3)
    assert spread([4.0]) == (4.0, None, 1)
    assert spread([None]) == (None, None, 0)


def test_paired_tests_are_scipys() -> None:
    ours = [0.71, 0.64, 0.80, 0.66, 0.75, 0.70]
    theirs = [0.69, 0.65, 0.74, 0.62, 0.70, 0.68]
    found = compare_paired(by_seed(*ours), by_seed(*theirs))
    assert found.n == 6
    assert found.difference == pytest.approx(0.18 / 6)
    assert found.t_test == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    assert found.wilcoxon == pytest.approx(stats.wilcoxon([round(gap, 9) for gap in gaps]).pvalue)
    assert found.note == ""


def test_only_seeds_that_both_have_are_paired() -> None:
    found = compare_paired({1: 0.5, 2: 0.6, 3: None, 4: 0.9}, {1: 0.4, 2: 0.4, 3: 0.1, 5: 0.2})
    assert (found.n, found.difference) == (2, pytest.approx(0.15))
    assert compare_paired({1: 0.5}, {2: 0.5}) == (0, None, None, None, None, "no seed in common")


def test_few_seeds_say_so() -> None:
    three = compare_paired(by_seed(0.5, 0.6, 0.7), by_seed(0.4, 0.4, 0.4))
    # Student by hand: differences 0.1, 0.2, 0.3: t = 0.2 / (0.1 / sqrt 3) = 3.4641 with 2 degrees.
    assert three.t_test == pytest.approx(0.0742, abs=1e-4)
    assert three.wilcoxon == pytest.approx(0.25)  # all of one sign: 2 of 2^3 sign patterns
    assert three.note == "3 seeds are too few for a test to mean much"
    five = compare_paired(by_seed(1, 2, 3, 4, 5), by_seed(0, 0, 0, 0, 0))
    assert five.wilcoxon == pytest.approx(0.0625)
    assert five.note == "with 5 seeds Wilcoxon's p cannot fall below 0.062"


def test_one_seed_has_no_test() -> None:
    found = compare_paired({7: 0.5}, {7: 0.4})
    assert found == (1, pytest.approx(0.1), None, None, None, "one seed: nothing to test")


def test_no_difference_at_all() -> None:
    values = by_seed(0.5, 0.6, 0.7, 0.8)
    found = compare_paired(values, values)
    assert found == (4, 0.0, 0.0, None, None, "no difference in any seed")


def test_the_same_difference_everywhere() -> None:
    """Its deviation is 0, so t is infinite; with rounding errors it is only huge."""
    found = compare_paired(by_seed(0.3, 0.5, 0.7, 0.9), by_seed(0.2, 0.4, 0.6, 0.8))
    assert found.t_test is None
    assert found.deviation == 0.0
    assert found.wilcoxon is not None and 0 < found.wilcoxon <= 1
    assert "the same difference in every seed" in found.note


def test_some_differences_are_zero_or_tied() -> None:
    found = compare_paired(by_seed(0.5, 0.6, 0.7, 0.8, 0.9), by_seed(0.5, 0.5, 0.6, 0.9, 0.7))
    assert found.wilcoxon is not None and 0 < found.wilcoxon <= 1
    assert found.t_test == pytest.approx(
        stats.ttest_rel([0.5, 0.6, 0.7, 0.8, 0.9], [0.5, 0.5, 0.6, 0.9, 0.7]).pvalue
    )
    assert compare_paired(by_seed(0.5, 0.6), by_seed(0.5, 0.5)).wilcoxon == pytest.approx(1.0)
