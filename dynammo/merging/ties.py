"""TIES: trim small changes, elect a sign for every number, average the changes that agree."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

import torch
from torch import Tensor

from dynammo.merging.options import check_number
from dynammo.merging.task_vectors import TaskVectors
from dynammo.state import State


def ties(adapters: Iterable[State], *, base: State, keep: float = 0.2, scale: float = 1.0) -> State:
    """W = w_0 + s tau, where for every number p of the adapter

    1. trim: tau_t^p is kept if it is among the largest share `keep` of |tau_t|, else it is 0;
    2. elect: g^p = sign(sum_t tau_t^p);
    3. merge: tau^p is the mean of those tau_t^p whose sign is g^p, 0 if there are none.

    The shares are of all numbers of an adapter together, over all positions. BatchNorm buffers have
    no task vector: they are merged as `average` does. One adapter is held at a time, beside sums
    and counts of positive and of negative changes. With `keep` below 1 an adapter on its own is
    trimmed as well.

    Args:
        adapters: in any order.
        base: w_0, the adapter before any training.
        keep: the share that trimming keeps, in 0..1; the paper's k = 20 is 0.2.
        scale: s, at least 0; the paper's lambda.

    Raises:
        ValueError: no adapters, adapters that do not fit together, or an option out of range.

    Source: arXiv 2306.01708, algorithm 1.
    """
    check_number("keep", keep, 0, 1)
    check_number("scale", scale)
    vectors = TaskVectors(adapters, base)
    # (4, ...) of every name: sum and count of the positive, sum and count of the negative changes.
    sums: dict[str, Tensor] = {}
    for vector in vectors:
        for name, change in trim(vector, keep).items():
            up, down = change.clamp(min=0), change.clamp(max=0)
            found = torch.stack([up, (up > 0).double(), down, (down < 0).double()])
            sums[name] = sums[name] + found if name in sums else found
    merged = {}
    for name, (up, ups, down, downs) in sums.items():
        elected = torch.where(up + down > 0, up / ups.clamp(min=1), down / downs.clamp(min=1))
        merged[name] = torch.where(up + down == 0, 0.0, elected)
    return vectors.merged(merged, scale)


def trim(vector: State, keep: float) -> State:
    """Set all but the largest share `keep` of a task vector's numbers, by magnitude, to zero.

    At least that share is kept: more where magnitudes are equal, all numbers where keep is 1.
    """
    magnitudes = torch.cat([value.abs().flatten() for value in vector.values()])
    count = ceil(keep * len(magnitudes))
    if count == 0:
        return {name: torch.zeros_like(value) for name, value in vector.items()}
    threshold = magnitudes.kthvalue(len(magnitudes) - count + 1).values
    return {
        name: torch.where(value.abs() >= threshold, value, 0.0) for name, value in vector.items()
    }
