"""MagMax: of all changes to a number, keep the largest."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dynammo.merging.options import check_number
from dynammo.merging.task_vectors import TaskVectors
from dynammo.state import State


def magmax(adapters: Iterable[State], *, base: State, scale: float = 1.0) -> State:
    """W = w_0 + s tau, with tau^p the tau_t^p of the largest magnitude, for every number p.

    Of two changes of the same magnitude and opposite signs the positive one is taken, so that the
    order of the adapters does not matter. BatchNorm buffers have no task vector: they are merged as
    `average` does. One adapter is held at a time.

    Args:
        adapters: in any order. The paper trains each from the one before (`adapter.init:
            previous`).
        base: w_0, the adapter before any training.
        scale: s, at least 0; the paper's lambda.

    Raises:
        ValueError: no adapters, adapters that do not fit together, or s out of range.

    Source: arXiv 2407.06322.
    """
    check_number("scale", scale)
    vectors = TaskVectors(adapters, base)
    largest: dict[str, Tensor] = {}
    for vector in vectors:
        for name, new in vector.items():
            old = largest.get(name, new)
            larger = (new.abs() > old.abs()) | ((new.abs() == old.abs()) & (new > old))
            largest[name] = torch.where(larger, new, old)
    return vectors.merged(largest, scale)
