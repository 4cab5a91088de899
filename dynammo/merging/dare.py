"""DARE: drop changes at random and rescale the rest, then average."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dynammo.merging.options import check_number
from dynammo.merging.task_vectors import TaskVectors
from dynammo.seeds import derive_seed
from dynammo.state import State


def dare(
    adapters: Iterable[State], *, base: State, seed: int, drop: float = 0.5, scale: float = 1.0
) -> State:
    """W = w_0 + (s/n) sum_t m_t * tau_t / (1 - p), the numbers of m_t 0 with probability p, else 1.

    Rescaling keeps the expectation: over all seeds W averages to that of p = 0, the average of the
    adapters if s = 1. Adapter t has its own mask, the same however many follow; which adapter has
    which mask depends on the order. BatchNorm buffers have no task vector: they are merged as
    `average` does. One adapter is held at a time.

    Args:
        adapters: in order of arrival.
        base: w_0, the adapter before any training.
        seed: of the masks.
        drop: p, at least 0 and at most 0.99.
        scale: s, at least 0.

    Raises:
        ValueError: no adapters, adapters that do not fit together, or an option out of range.

    Source: arXiv 2311.03099 (drop and rescale), here followed by averaging.
    """
    check_number("drop", drop, 0, 0.99)
    check_number("scale", scale)
    vectors = TaskVectors(adapters, base)
    total: dict[str, Tensor] = {}
    for vector in vectors:
        generator = torch.Generator().manual_seed(derive_seed(seed, "dare", vectors.count))
        for name in sorted(vector):
            kept = torch.rand(vector[name].shape, generator=generator) >= drop
            change = torch.where(kept, vector[name] / (1 - drop), 0.0)
            total[name] = total[name] + change if name in total else change
    return vectors.merged(total, scale / vectors.count)
