"""Move a merged adapter towards another one: the step that all running averages take."""

from __future__ import annotations

from dynammo.merging.layout import check_same_layout
from dynammo.state import State

_VARIANCE = "running_var"
_MEAN = "running_mean"
_COUNTER = "num_batches_tracked"


def is_statistic(name: str) -> bool:
    """Whether a tensor of this name is a buffer of BatchNorm: measured, not trained."""
    return name.endswith((_VARIANCE, _MEAN, _COUNTER))


def blend(merged: State, adapter: State, share: float) -> State:
    """M <- M + s (w - M) for every weight, bias, scale and BatchNorm mean.

    A BatchNorm's running variance becomes that of the mixture of both activations, in the
    proportion (1 - s) : s,

        var <- (1 - s) var_M + s var_w + s (1 - s) (mean_w - mean_M)^2.

    The integer batch counter is no statistic and is taken from `adapter`.

    Args:
        merged: M.
        adapter: w.
        share: s, in 0..1.

    Raises:
        ValueError: the two do not fit together.
    """
    check_same_layout(merged, adapter)
    result: State = {}
    for name, old in merged.items():
        new = adapter[name]
        if name.endswith(_COUNTER):
            result[name] = new.clone()
            continue
        # In float64: the rounding of n single-precision updates would otherwise add up.
        value = old.double() + share * (new.double() - old.double())
        if name.endswith(_VARIANCE):
            mean = name.removesuffix(_VARIANCE) + _MEAN
            shift = adapter[mean].double() - merged[mean].double()
            value = value + share * (1 - share) * shift.square()
        result[name] = value.to(old.dtype)
    return result
