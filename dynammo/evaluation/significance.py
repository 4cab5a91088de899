"""Whether two methods differ by more than their seeds do: means, deviations, paired tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

FEW = 5  # with fewer seeds a p-value says more about the number of seeds than about the methods
_SAME = 1e-9  # shares that differ by less do not differ: less than one image in any test set


class Spread(NamedTuple):
    """Mean, and standard deviation over n values (ddof = 1); none where n is too small."""

    mean: float | None
    deviation: float | None
    n: int


class Paired(NamedTuple):
    """A method against a reference on the same n seeds.

    `difference` is the mean of method minus reference, `deviation` that of the n differences.
    `t_test` and `wilcoxon` are two-sided p-values, none where they are not defined; `note` says
    why, or how far to trust them. None of them is corrected for the number of comparisons.
    """

    n: int
    difference: float | None
    deviation: float | None
    t_test: float | None
    wilcoxon: float | None
    note: str


def spread(values: Sequence[float | None]) -> Spread:
    """Mean and sample standard deviation of the values that exist.

    s = sqrt( sum_i (x_i - mean)^2 / (n - 1) )
    """
    present = [value for value in values if value is not None]
    if not present:
        return Spread(None, None, 0)
    deviation = float(np.std(present, ddof=1)) if len(present) > 1 else None
    return Spread(float(np.mean(present)), deviation, len(present))


def compare_paired(
    values: Mapping[int, float | None], reference: Mapping[int, float | None]
) -> Paired:
    """Compare a metric of two methods, paired by seed: both met the same classes in the same order.

    Student's t-test of the differences, and Wilcoxon's signed-rank test (SciPy's `ttest_rel` and
    `wilcoxon`), which leaves out differences of 0. The t-test is not defined where all differences
    are equal, Wilcoxon's not where all are 0.

    Args:
        values: seed -> value; seeds that only one side has are left out.
        reference: likewise.
    """
    pairs = [
        (value, other)
        for seed, value in values.items()
        if value is not None and (other := reference.get(seed)) is not None
    ]
    n = len(pairs)
    if not n:
        return Paired(0, None, None, None, None, "no seed in common")
    ours, theirs = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    differences = ours - theirs
    differences[np.abs(differences) < _SAME] = 0.0
    difference, deviation, _ = spread(differences.tolist())
    if n == 1:
        return Paired(1, difference, None, None, None, "one seed: nothing to test")
    if not differences.any():
        return Paired(n, 0.0, 0.0, None, None, "no difference in any seed")
    wilcoxon = float(stats.wilcoxon(differences).pvalue)
    if np.ptp(differences) < _SAME:
        note = "the same difference in every seed: the t-test is not defined"
        return Paired(n, difference, 0.0, None, wilcoxon, note)
    t_test = float(stats.ttest_rel(ours, theirs).pvalue)
    if n < FEW:
        note = f"{n} seeds are too few for a test to mean much"
    elif (least := 2.0 ** (1 - np.count_nonzero(differences))) > 0.05:
        note = f"with {n} seeds Wilcoxon's p cannot fall below {least:.3f}"
    else:
        note = ""
    assert math.isfinite(t_test)
    return Paired(n, difference, deviation, t_test, wilcoxon, note)
