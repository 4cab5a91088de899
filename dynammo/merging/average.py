"""The paper's merge rule: average the adapters' weights."""

from __future__ import annotations

from collections.abc import Iterable

from dynammo.merging.blend import blend
from dynammo.state import State


def average(adapters: Iterable[State]) -> State:
    """W = (1/n) sum_t w_t for every weight, bias, scale and BatchNorm mean.

    A BatchNorm's running variance becomes the pooled variance of the n activations it stands for,
    each adapter counting once: mean_t(var_t) + var_t(mean_t), where the second term is the
    (population) variance of the running means. Averaging variances alone would ignore that the
    means differ. The integer batch counter is no statistic and is taken from the last adapter.

    The adapters may be a generator: one is held at a time (a running mean), so memory does not grow
    with n.

    Raises:
        ValueError: no adapters, or adapters that do not fit together.

    Source: arXiv 2404.14099, abstract and figure 1; the BatchNorm rule is this project's.
    """
    merged: State | None = None
    for count, adapter in enumerate(adapters, start=1):
        merged = dict(adapter) if merged is None else running_average(merged, adapter, count)
    if merged is None:
        raise ValueError("there is no adapter to merge")
    return merged


def running_average(merged: State, adapter: State, count: int) -> State:
    """Fold one more adapter into an average: M <- M + (w - M) / n.

    Args:
        merged: the average of the first `count - 1` adapters.
        adapter: adapter number `count`.
        count: n, at least 2.

    Returns:
        `average` of all `count` adapters, up to rounding.

    Raises:
        ValueError: `count` below 2, or adapters that do not fit together.
    """
    if count < 2:
        raise ValueError(f"count must be at least 2, got {count}")
    return blend(merged, adapter, 1 / count)
