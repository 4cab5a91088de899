"""Merge by the median, which one odd adapter cannot pull away."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from dynammo.merging.layout import check_same_layout
from dynammo.state import State

STREAMS = False  # all adapters are held in memory at once


def median(adapters: Iterable[State]) -> State:
    """W = median_t(w_t) for every number; of an even count the lower of the two middle ones.

    BatchNorm means and variances are treated like weights; of the batch counter, too, the median
    is taken.

    Raises:
        ValueError: no adapters, or adapters that do not fit together.
    """
    states = list(adapters)
    if not states:
        raise ValueError("there is no adapter to merge")
    for other in states[1:]:
        check_same_layout(states[0], other)
    return {
        name: torch.stack([state[name] for state in states]).median(dim=0).values
        for name in states[0]
    }
