"""Task vectors, tau_t = w_t - w_0: what training changed, and the rule that adds them up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from dynammo.merging.average import running_average
from dynammo.merging.blend import is_statistic
from dynammo.merging.layout import check_same_layout
from dynammo.merging.options import check_number
from dynammo.state import State


def task_arithmetic(adapters: Iterable[State], *, base: State, scale: float = 1.0) -> State:
    """W = w_0 + s sum_t tau_t, with tau_t = w_t - w_0.

    With s = 1/n this is the average. n equal adapters do not merge to themselves but, with s = 1,
    to n times their change. BatchNorm buffers have no task vector: they are merged as `average`
    does. One adapter is held at a time.

    Args:
        adapters: in any order.
        base: w_0, the adapter before any training.
        scale: s, at least 0.

    Raises:
        ValueError: no adapters, adapters that do not fit together, or s out of range.

    Source: arXiv 2212.04089.
    """
    check_number("scale", scale)
    vectors = TaskVectors(adapters, base)
    total: dict[str, Tensor] = {}
    for vector in vectors:
        total = {name: total[name] + v for name, v in vector.items()} if total else vector
    return vectors.merged(total, scale)


class TaskVectors:
    """The task vectors of adapters, one at a time; and what becomes of the rest of their states.

    Iterating, once, gives tau_t = w_t - w_0 in float64, of everything but BatchNorm's buffers,
    which are merged on the way, as `average` does. `count` is t.

    Args:
        adapters: in order of arrival.
        base: w_0, the adapter before any training.
    """

    def __init__(self, adapters: Iterable[State], base: State) -> None:
        self._adapters = adapters
        self._base = base
        self._buffers: State = {}
        self.count = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Raises `ValueError` where there are no adapters, or one that does not fit w_0."""
        for adapter in self._adapters:
            self.count += 1
            check_same_layout(self._base, adapter)
            own = {name: value for name, value in adapter.items() if is_statistic(name)}
            first = self.count == 1
            self._buffers = own if first else running_average(self._buffers, own, self.count)
            yield {
                name: value.double() - self._base[name].double()
                for name, value in adapter.items()
                if name not in own
            }
        if not self.count:
            raise ValueError("there is no adapter to merge")

    def merged(self, vector: Mapping[str, Tensor], scale: float) -> State:
        """w_0 + s tau with the types of w_0, and the merged buffers of the adapters seen."""
        return {
            name: self._buffers[name].clone()
            if name in self._buffers
            else (start.double() + scale * vector[name]).to(start.dtype)
            for name, start in self._base.items()
        }
