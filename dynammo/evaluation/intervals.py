"""How sure a number is: intervals that respect which images belong to one patient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

DRAWS = 1000


class Interval(TypedDict):
    """A measured value from so many images of so many groups, and its two-sided interval.

    `value` is None without images, `low` and `high` with fewer than two groups.
    """

    images: int
    groups: int
    value: float | None
    low: float | None
    high: float | None


def numbered(labels: Sequence[str | int | None]) -> NDArray[np.int64]:
    """(N,): the same number, from 0 without gaps, for the same label; None is never the same."""
    numbers: dict[object, int] = {}
    keys = (("alone", i) if label is None else label for i, label in enumerate(labels))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def share_interval(
    hits: NDArray[np.bool_], groups: Sequence[str | int | None], confidence: float
) -> Interval:
    """A share of images, such as a sensitivity, with an exact interval for grouped images.

    Clopper and Pearson's interval for p = x / n, where images of one group g (n_g images, x_g hits)
    may be alike: n is replaced by the effective number

        n* = n / deff,    deff = [G / (G - 1) sum_g (x_g - p n_g)^2 / n^2] / [p (1 - p) / (n - 1)]

    but at most n, and x by p n*. Where all images are hits, or none, the spread between groups says
    nothing, and n* is the number of groups G. With an image a group it is the exact interval.

    Unlike a bootstrap's, its end is not 1 where all of a few images are right.

    Args:
        hits: (N,) bool.
        groups: N labels; an image with None is a group of its own.
        confidence: in (0, 1), of the two-sided interval.

    Source: Korn and Graubard 1998, Survey Methodology 24, 193-201, without their correction for the
        degrees of freedom.
    """
    owner = numbered(groups)
    images, count = len(hits), int(owner.max(initial=-1)) + 1
    share = float(hits.mean()) if images else None
    found: Interval = {"images": images, "groups": count, "value": share, "low": None, "high": None}
    if share is None or count < 2:
        return found
    size = np.bincount(owner, minlength=count)
    apart = np.bincount(owner, weights=hits, minlength=count) - share * size
    effective = float(count)
    if 0 < share < 1:
        between = count / (count - 1) * float(np.square(apart).sum()) / images**2
        alone = share * (1 - share) / (images - 1)
        effective = min(float(images), images * alone / between) if between else float(images)
    right, tail = share * effective, (1 - confidence) / 2
    wrong = effective - right
    low = float(beta.ppf(tail, right, wrong + 1)) if right > 0 else 0.0
    high = float(beta.ppf(1 - tail, right + 1, wrong)) if wrong > 0 else 1.0
    return {**found, "low": low, "high": high}


def bootstrap_interval(
    statistic: Callable[[NDArray[np.int64]], float | None],
    groups: Sequence[str | int | None],
    confidence: float,
    *,
    draws: int = DRAWS,
) -> Interval:
    """Any statistic of images with its percentile interval: whole groups are drawn again.

    Args:
        statistic: from indices of images, some of them several times; None where it has no value.
        groups: N labels; an image with None is a group of its own.
        confidence: in (0, 1), of the two-sided interval.
        draws: how many times groups are drawn; the same draws every time.

    Source: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8.
    """
    owner = numbered(groups)
    count = int(owner.max(initial=-1)) + 1
    everything = np.arange(len(owner))
    value = statistic(everything) if len(owner) else None
    found: Interval = {
        "images": len(owner),
        "groups": count,
        "value": value,
        "low": None,
        "high": None,
    }
    if value is None or count < 2:
        return found
    members = np.split(np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner))[:-1])
    random = np.random.default_rng(0)
    again = [
        statistic(np.concatenate([members[group] for group in random.integers(count, size=count)]))
        for _ in range(draws)
    ]
    # A draw in which the statistic has no value is left out.
    kept = [own for own in again if own is not None]
    low, high = percentiles(kept, confidence)
    return {**found, "low": low, "high": high}


def percentiles(
    drawn: Sequence[float] | NDArray[np.floating[Any]], confidence: float
) -> tuple[float, float]:
    """The percentile interval of draws, which leaves out as many below as above."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail)).tolist()
    return low, high
