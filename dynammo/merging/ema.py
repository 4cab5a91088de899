"""Exponential moving average: the newest adapter has a fixed say, older ones fade."""

from __future__ import annotations

from collections.abc import Iterable

from dynammo.merging.blend import blend
from dynammo.merging.options import check_number
from dynammo.state import State


def ema(adapters: Iterable[State], *, decay: float = 0.5) -> State:
    """M_1 = w_1, M_t = d M_(t-1) + (1 - d) w_t.

    Adapter t of n has the weight (1 - d) d^(n - t), the first one d^(n - 1). So the order matters.
    BatchNorm means and variances are pooled with these weights, as `blend` says; the batch counter
    is the last adapter's. One adapter is held at a time.

    Args:
        adapters: in order of arrival.
        decay: d, in 0..1; at 0 the newest adapter remains, at 1 the first.

    Raises:
        ValueError: no adapters, adapters that do not fit together, or d out of range.

    Source: weight averaging along a trajectory, as of teacher weights in arXiv 1703.01780, with
    one step a task.
    """
    check_number("decay", decay, 0, 1)
    merged: State | None = None
    for adapter in adapters:
        merged = dict(adapter) if merged is None else blend(merged, adapter, 1 - decay)
    if merged is None:
        raise ValueError("there is no adapter to merge")
    return merged
