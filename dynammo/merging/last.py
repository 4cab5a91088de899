"""No merging: the newest adapter alone, what every other rule is to be held against."""

from __future__ import annotations

from collections.abc import Iterable

from dynammo.merging.layout import check_same_layout
from dynammo.state import State


def last(adapters: Iterable[State]) -> State:
    """W = w_n, its BatchNorm buffers included. One adapter is held at a time.

    With `adapter.init: previous` this is one shared adapter that every task tunes on, as in SSIAT
    (CVPR 2024); the head follows what that does to old classes by their statistics.

    Raises:
        ValueError: no adapters, or adapters that do not fit together.
    """
    newest: State | None = None
    for adapter in adapters:
        if newest is not None:
            check_same_layout(newest, adapter)
        newest = {name: value.clone() for name, value in adapter.items()}
    if newest is None:
        raise ValueError("there is no adapter to merge")
    return newest
