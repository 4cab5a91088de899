"""Does a deployed model still see what it was measured on? New images against held-out ones.

Every check is a permutation test: were it all the same, it would not matter which images (with a
patient's others) are called new, so the chance of a difference as large as the one found is counted
by calling others new. No distribution is assumed, and few images make no false alarm more likely.
The p-values of a batch are corrected for their number together (Holm).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from dynammo.evaluation import appearance
from dynammo.evaluation.intervals import numbered
from dynammo.evaluation.metrics import Floats, Integers

FAR = 0.95  # stranger than this share of the images that the model was measured on
_LEAST = 10  # draws for the smallest p-value that may matter
_CHUNK = 1 << 24  # numbers at a time


class Seen(NamedTuple):
    """What a model makes of N images.

    `residuals` (N, D), the image's features minus the nearest class's mean, whitened;
    `distances` (N,), their squared length; `strangeness` (N,) of the answers
    (`dynammo.evaluation.strangeness`); `looks` (N, K), of the pictures' appearance, none where the
    pictures are not kept; `answers` (N,), the class given, in [0, C); `targets` (N,), the class
    known, -1 where it is not; `groups`, N labels of patients, None of nobody's.
    """

    residuals: Floats
    distances: Floats
    strangeness: Floats
    looks: Floats | None
    answers: Integers
    targets: Integers
    groups: Sequence[str | None]


class Check(TypedDict):
    """A check: what was measured of the images `before`, if that is a number of its own, and of
    those `now`; `p` alone and `adjusted` for all checks of the batch; whether it is an `alarm`.
    """

    name: str
    before: float | None
    now: float
    p: float
    adjusted: float
    alarm: bool


def monitor(
    reference: Seen,
    new: Seen,
    classes: Sequence[str],
    *,
    false_alarms: float = 0.01,
    window: Mapping[str, int] | None = None,
) -> list[Check]:
    """Check a batch of new images.

    - `features`: how far apart the mean residuals are, in standard deviations. Another scanner,
      light, blur.
    - `distance`: its median to the nearest class; tested is its whole distribution among images
      that are answered alike, by Kolmogorov and Smirnov's statistic.
    - `unknown`: the share of answers that are stranger than 95 % of the reference's; tested is the
      mean of -log(1 - rank), which the strangest dominate. A new disease like the known ones.
    - `appearance`: the same of how far the pictures look from those of the classes. A new disease
      unlike them, artefacts. Only where the reference's pictures are kept.
    - `answers`: the share of answers that are of other classes than before (total variation);
      tested by Pearson's chi-squared. Another mix of diseases, too.
    - `recall of ...`: of each class with known labels; only a loss counts.

    Args:
        reference: images that the model was not trained on, as it was measured with.
        new: as they come now; at least one.
        classes: C names.
        false_alarms: the share of batches of images like the reference's in which any check may
            raise an alarm, by chance.
        window: numbers of answers by class of a time when all was well, to compare `answers` with
            instead of the reference's.

    Source: Phipson and Smyth 2010 (arXiv 1603.05766), p = (b + 1) / (draws + 1); Holm 1979.
    """
    measured = [
        c
        for c in range(len(classes))
        if (new.targets == c).any() and (reference.targets == c).any()
    ]
    strange = {"unknown": (reference.strangeness, new.strangeness)}
    if reference.looks is not None and new.looks is not None:
        looked = appearance.fit(reference.looks, reference.targets)
        own = appearance.distances_of_others(reference.looks, reference.targets)
        strange["appearance"] = (own, looked.distance(new.looks))
    draws = math.ceil(_LEAST * (3 + len(strange) + len(measured)) / false_alarms)
    fresh = np.repeat([False, True], [len(reference.answers), len(new.answers)])
    answers = np.concatenate([reference.answers, new.answers])
    distances = np.concatenate([reference.distances, new.distances])
    moved = np.concatenate([reference.residuals, new.residuals])
    owner, ranks = _owners(reference.groups, new.groups), _ranks(distances, answers)
    order, shares = np.argsort(ranks), _shares(answers, len(classes))
    tails = np.stack([_tail(np.concatenate(pair)) for pair in strange.values()], axis=1)
    last = np.append(np.diff(ranks[order]) > 0, True)  # of equal ones, where all have come

    def inputs(weights: Floats) -> Floats:
        features = np.square(weights @ moved).sum(axis=1)
        distance = np.abs(np.cumsum(weights[:, order], axis=1)[:, last]).max(axis=1)
        mixed = np.square(weights @ shares).sum(axis=1)
        return np.column_stack([features, distance, mixed, weights @ tails])

    p_values = _p_values(inputs, fresh, owner, draws).tolist()
    before = np.bincount(reference.answers, minlength=len(classes))
    if window is not None:
        before = np.array([window.get(name, 0) for name in classes])
        earlier = np.repeat(np.arange(len(classes)), before)
        mixed = _shares(np.concatenate([earlier, new.answers]), len(classes))
        (p_values[2],) = _p_values(
            lambda weights: np.square(weights @ mixed).sum(axis=1)[:, None],
            np.repeat([False, True], [len(earlier), len(new.answers)]),
            _owners([None] * len(earlier), new.groups),
            draws,
        )
    now = np.bincount(new.answers, minlength=len(classes))
    values: list[tuple[str, float | None, float]] = [
        ("features", None, float(np.linalg.norm(_weights(fresh[None]) @ moved))),
        ("distance", float(np.median(reference.distances)), float(np.median(new.distances))),
        ("answers", None, np.abs(now / now.sum() - before / before.sum()).sum() / 2),
    ]
    for name, (was, is_now) in strange.items():
        limit = np.quantile(was, FAR)
        values.append((name, (was > limit).mean(), (is_now > limit).mean()))
    right = (answers == np.concatenate([reference.targets, new.targets])).astype(float)
    for c in measured:
        mine = np.concatenate([reference.targets, new.targets]) == c
        own, side = right[mine], fresh[mine]
        p_values += _p_values(_loss(own), side, owner[mine], draws).tolist()
        values.append((f"recall of {classes[c]}", own[~side].mean(), own[side].mean()))
    return [
        {
            "name": name,
            "before": None if of_old is None else float(of_old),
            "now": float(of_new),
            "p": p,
            "adjusted": adjusted,
            "alarm": adjusted <= false_alarms,
        }
        for (name, of_old, of_new), p, adjusted in zip(
            values, p_values, holm(p_values), strict=True
        )
    ]


def holm(values: Sequence[float]) -> list[float]:
    """p-values that may be held against one level together: max over j <= i of (m - j + 1) p_(j).

    Source: Holm 1979.
    """
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted


def _p_values(
    statistic: Callable[[Floats], Floats], fresh: NDArray[np.bool_], owner: Integers, draws: int
) -> Floats:
    """(K,): the share of draws whose statistics are at least those found; whole groups are drawn.

    Args:
        statistic: weights (B, N), 1 / n of the new images and -1 / n of the others -> (B, K), large
            where the two differ.
        fresh: (N,), which images are new.
        owner: (N,), numbers of groups, none of which is on both sides.
        draws: how many.
    """
    _, owner = np.unique(owner, return_inverse=True)
    groups, new_groups = int(owner.max()) + 1, len(np.unique(owner[fresh]))
    found = statistic(_weights(fresh[None]))[0]
    found = found - 1e-9 * np.abs(found)  # rounding must not make what is the same smaller
    reached = np.zeros(len(found))
    generator = np.random.default_rng(0)
    for size in _chunks(draws, len(fresh)):
        chosen = generator.random((size, groups)).argsort(axis=1) < new_groups
        reached += (statistic(_weights(chosen[:, owner])) >= found).sum(axis=0)
    p: Floats = (reached + 1) / (draws + 1)
    return p


def _loss(right: Floats) -> Callable[[Floats], Floats]:
    return lambda weights: -(weights @ right)[:, None]


def _chunks(draws: int, width: int) -> Iterator[int]:
    step = max(1, _CHUNK // width)
    for start in range(0, draws, step):
        yield min(step, draws - start)


def _weights(fresh: NDArray[np.bool_]) -> Floats:
    counts = fresh.sum(axis=1, keepdims=True)
    weights: Floats = np.where(fresh, 1 / counts, -1 / (fresh.shape[1] - counts))
    return weights


def _owners(reference: Sequence[str | None], new: Sequence[str | None]) -> Integers:
    """Numbers of groups; a patient who is in both is two."""
    first = numbered(reference)
    return np.concatenate([first, numbered(new) + first.max(initial=-1) + 1])


def _ranks(distances: Floats, answers: Integers) -> Floats:
    """(N,) in (0, 1]: the share of the images answered alike that are at most as far.

    Among those answered alike, so that another mix of diseases is not taken for drift.
    """
    ranks = np.empty(len(distances))
    for answer in np.unique(answers):
        own = answers == answer
        among = np.sort(distances[own])
        ranks[own] = np.searchsorted(among, distances[own], side="right") / len(among)
    return ranks


def _tail(values: Floats) -> Floats:
    """(N,): -log of the share of values that are as high."""
    order = np.sort(values)
    above = len(values) - np.searchsorted(order, values, side="left")
    tail: Floats = -np.log(above / len(values))
    return tail


def _shares(answers: Integers, classes: int) -> Floats:
    """(N, C): one-hot, over the root of the class's share, as in Pearson's chi-squared."""
    hot = np.eye(classes)[answers]
    scaled: Floats = hot / np.sqrt(np.maximum(hot.mean(axis=0), 1e-12))
    return scaled
