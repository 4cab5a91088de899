"""Volumes in a network of pictures: a strip becomes slices, their features those of the volume.

Slices go through the network as pictures do, adapters and all, so a volume of S slices costs S
times a picture. The means below need no training, so class statistics of volumes merge, add up and
are forgotten as those of pictures are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor

_PARTS = 3


def apart(strips: Tensor, slices: int) -> Tensor:
    """(B, 3, S * H, W) -> (B * S, 3, H, W), volume by volume."""
    own: Tensor = strips.unflatten(2, (slices, -1)).movedim(2, 1)
    return own.flatten(0, 1)


def mean(features: Tensor) -> Tensor:
    """(B, S, D) -> (B, D): what is seen in the volume, wherever that is."""
    return features.mean(1)


def thirds(features: Tensor) -> Tensor:
    """(B, S, D) -> (B, 3 D): the means of the first, the middle and the last third of the slices,
    side by side: also where along the volume something is seen.
    """
    slices = features.shape[1]
    ends = [round(part * slices / _PARTS) for part in range(_PARTS + 1)]
    parts = pairwise(ends)
    return torch.cat([features[:, a : max(b, a + 1)].mean(1) for a, b in parts], dim=1)


POOLS: Mapping[str, Callable[[Tensor], Tensor]] = {"mean": mean, "thirds": thirds}
