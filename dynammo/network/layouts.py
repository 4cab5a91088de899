"""How feature maps are laid out in a backbone: the one place that knows.

Adapters that stand before a stage are written for maps (B, C, H, W). Transformers pass on tokens
(B, N, C), of which the first may stand for no place in the image (class token, registers), or maps
with the channels last (B, H, W, C). A layout shows such a tensor to an adapter as the map that it
is, and brings the residual back.
"""

from __future__ import annotations

from inspect import signature
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class ChannelsFirst(NamedTuple):
    """(B, C, H, W), as CNNs have it."""

    channels: int
    side: int  # the smaller of H and W

    def as_map(self, x: Tensor) -> Tensor:
        """The map (B, C, H, W) that x is."""
        return x

    def residual(self, adapter: nn.Module, x: Tensor) -> Tensor:
        """What the adapter adds to x."""
        residual: Tensor = adapter(x)
        return residual


class ChannelsLast(NamedTuple):
    """(B, H, W, C), as Swin has it."""

    channels: int
    side: int

    def as_map(self, x: Tensor) -> Tensor:
        """The map (B, C, H, W) that x is."""
        return x.permute(0, 3, 1, 2)

    def residual(self, adapter: nn.Module, x: Tensor) -> Tensor:
        """What the adapter adds to x."""
        residual: Tensor = adapter(self.as_map(x)).permute(0, 2, 3, 1)
        return residual


class TokenList(NamedTuple):
    """(B, N, C) for an adapter that sees one place at a time: all tokens as (B, C, N, 1)."""

    channels: int
    side: int = 1

    def as_map(self, x: Tensor) -> Tensor:
        """The tokens as a map (B, C, N, 1)."""
        return x.transpose(1, 2).unsqueeze(3)

    def residual(self, adapter: nn.Module, x: Tensor) -> Tensor:
        """What the adapter adds to x."""
        residual: Tensor = adapter(self.as_map(x)).squeeze(3).transpose(1, 2)
        return residual


class TokenMap(NamedTuple):
    """(B, N, C) for an adapter that sees neighbours: the patches' tokens as (B, C, side, side).

    To the `prefix` tokens before them, which have no place in the image, nothing is added; they
    meet the adapter's work in the attention behind it.
    """

    channels: int
    side: int
    prefix: int

    def as_map(self, x: Tensor) -> Tensor:
        """The patches' tokens as (B, C, side, side)."""
        square: Tensor = x[:, self.prefix :].transpose(1, 2).unflatten(2, (self.side, self.side))
        return square

    def residual(self, adapter: nn.Module, x: Tensor) -> Tensor:
        """What the adapter adds to x."""
        residual: Tensor = adapter(self.as_map(x)).flatten(2).transpose(1, 2)
        return torch.cat([torch.zeros_like(x[:, : self.prefix]), residual], dim=1)


Layout = ChannelsFirst | ChannelsLast | TokenList | TokenMap


def holds_copies(layout: Layout | None) -> bool:
    """Whether the batch may become larger here: networks of tokens, and blocks round a layer, go
    back to the number of images they were given.
    """
    return isinstance(layout, ChannelsFirst | ChannelsLast)


def layout_of(backbone: nn.Module, shape: torch.Size, neighbours: bool) -> Layout:
    """The layout of a tensor that a module of a backbone is given.

    Which axis of four holds the channels is what timm says of the network (`output_fmt`, channels
    first where it says nothing).

    Args:
        backbone: a timm network.
        shape: of the tensor.
        neighbours: whether the adapter sees more than one place at a time.

    Raises:
        ValueError: it is no map and no list of tokens, or the adapter sees neighbours and the
            tokens are no square map.
    """
    if len(shape) == 4:
        if getattr(backbone, "output_fmt", None) == "NHWC":
            return ChannelsLast(shape[3], min(shape[1:3]))
        return ChannelsFirst(shape[1], min(shape[2:]))
    if len(shape) != 3:
        raise ValueError(f"takes {tuple(shape)}, neither a map nor tokens (B, N, C)")
    if not neighbours:
        return TokenList(shape[2])
    # Some networks add their class token later than here: then all tokens are patches.
    for prefix in (getattr(backbone, "num_prefix_tokens", 0) or 0, 0):
        patches = shape[1] - prefix
        if patches == isqrt(patches) ** 2:
            return TokenMap(shape[2], isqrt(patches), prefix)
    raise ValueError(f"takes {shape[1]} tokens, which are no square map; choose another adapter")


def has_one_resolution(backbone: nn.Module) -> bool:
    """Whether all blocks of a timm network have as many tokens, as in ViT, DeiT and EVA."""
    info: Any = getattr(backbone, "feature_info", ())
    steps = [level["reduction"] for level in _dicts(info)]
    return len(steps) > 1 and len(set(steps)) == 1


def intermediate_maps(backbone: nn.Module, pixels: Tensor, count: int) -> list[Tensor]:
    """The last feature maps of a timm network, (B, C, h, w) each, the earliest first.

    Of a network with levels of resolution, those of the last `count` of them. Of one with a single
    resolution, those of its last `count` blocks, behind its last normalisation; where its own head
    reads the class token, that token alone, as a map of one pixel.

    Args:
        backbone: with timm's `forward_intermediates`.
        pixels: (B, 3, H, W), normalised.
        count: at most what `feature_info` lists.
    """
    given: Any = backbone
    chosen: dict[str, Any] = {"indices": count, "intermediates_only": True}
    if not has_one_resolution(backbone):
        maps: list[Tensor] = given.forward_intermediates(pixels, **chosen)
        return maps
    # Where timm cannot give the class token, it joins the patches behind the last of these blocks.
    has_token = "return_prefix_tokens" in signature(given.forward_intermediates).parameters
    if has_token and given.global_pool == "token" and given.num_prefix_tokens:
        both = given.forward_intermediates(pixels, norm=True, return_prefix_tokens=True, **chosen)
        return [prefix[:, 0, :, None, None] for _, prefix in both]
    maps = given.forward_intermediates(pixels, norm=True, **chosen)
    return maps


def _dicts(info: Any) -> list[dict[str, Any]]:
    return list(info.get_dicts() if hasattr(info, "get_dicts") else info)
