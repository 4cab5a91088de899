"""Features of several levels of resolution, instead of the network's last layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynammo.errors import ConfigError


def check_levels(backbone: nn.Module, levels: int) -> None:
    """Refuse levels that a backbone does not have.

    Raises:
        ConfigError: it has fewer, or does not give its feature maps (timm's
            `forward_intermediates`).
    """
    if not hasattr(backbone, "forward_intermediates"):
        kind = type(backbone).__name__
        wanted = "backbone.levels: null takes its last layer"
        raise ConfigError([f"backbone.levels: {kind} does not give its feature maps; {wanted}"])
    info: Any = backbone.feature_info
    if levels > (known := len(list(info))):
        raise ConfigError(
            [f"backbone.levels is {levels}, but this backbone has {known} (null: its last layer)"]
        )


def signed_levels(maps: Sequence[Tensor]) -> list[bool]:
    """Whether each level's feature map has negative values; behind a ReLU none has.

    To be asked of an image of noise: no map of hundreds of values is without a negative one by
    chance.
    """
    return [bool((feature_map < 0).any()) for feature_map in maps]


def level_features(maps: Sequence[Tensor], signed: Sequence[bool], copies: int = 1) -> Tensor:
    """Pooled feature maps of several levels of resolution, side by side.

    Of every channel of a level's map x the mean of its positive part and of its negative part,

        [mean max(x, 0), mean max(-x, 0)] over the pixels,

    scaled so that their sum is the same for every level, and the mean of all features 1: no level
    counts for more than another, however many channels it has.
    What a pretrained network finds half-way (texture, colour, edges) carries over to other kinds of
    images better than its last layer, which was made to tell its own classes apart
    (arXiv 2201.03529). For classes that arrive task by task this is LayUP (arXiv 2312.08888), with
    the class tokens of a transformer's last blocks side by side; what differs here is the two
    parts, the equal weight, and a CNN's pooled maps.

    Args:
        maps: of each level (B, C, h, w), the finest first
            (`dynammo.network.layouts.intermediate_maps`).
        signed: for each of them, whether it has negative parts; where not, they are left out
            (`signed_levels`).
        copies: n where adapters side by side made n copies of each image
            (`dynammo.network.network.ParallelAdapters`).

    Returns:
        (B, D), or (n * B, D); D is the number of the levels' channels, those of signed levels
        twice.
    """
    pooled = []
    for feature_map, negative in zip(maps, signed, strict=True):
        parts = (feature_map, -feature_map) if negative else (feature_map,)
        means = torch.cat([part.relu().mean((2, 3)) for part in parts], dim=1)
        pooled.append(means / means.sum(1, keepdim=True).clamp(min=1e-6))
    if copies > 1:  # what lies before the first adapter ran once
        count = len(pooled[-1])
        pooled = [part.repeat(count // len(part), 1) for part in pooled]
    shares = torch.cat(pooled, dim=1)
    return shares * (shares.shape[1] / len(signed))
