"""Average the adapters' weights, each by how many images it was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dynammo.merging.blend import blend
from dynammo.state import State


def weighted(adapters: Iterable[State], *, samples: Sequence[int]) -> State:
    """W = sum_t N_t w_t / sum_t N_t, N_t the number of training images of task t.

    BatchNorm: each adapter's activations count N_t times, so means are averaged with the same
    weights, and variances are pooled: sum_t p_t (var_t + (mean_t - mean)^2) with p_t = N_t / sum N.
    The batch counter is the last adapter's. A running average: one adapter is held at a time.

    Args:
        adapters: in order of arrival; the order changes nothing but the batch counter.
        samples: N_t, in the same order.

    Raises:
        ValueError: no adapters, adapters that do not fit together, a count below 1, or not one
            count an adapter.

    Source: the server's step of federated averaging, arXiv 1602.05629, algorithm 1.
    """
    merged: State | None = None
    total = 0
    for adapter, count in zip(adapters, samples, strict=True):
        if count < 1:
            raise ValueError(f"every adapter needs at least 1 training image, got {count}")
        total += count
        merged = dict(adapter) if merged is None else blend(merged, adapter, count / total)
    if merged is None:
        raise ValueError("there is no adapter to merge")
    return merged
