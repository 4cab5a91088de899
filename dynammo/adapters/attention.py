"""Attention: gates by channel and by place, which follow from the whole map."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

_Gate = Literal["se", "eca", "cbam"]


class AttentionAdapter(nn.Module):
    """A(x) = (g(x) - 1) x: every number is multiplied by a gate g = 2 sigmoid(z) = 1 + tanh(z / 2).

    Published gates are sigmoid(z), at most 1, in networks trained with them. Here they are twice as
    much, and the last layer before each z is zero at the start: then g = 1, so training starts from
    the pretrained network, and the gradient by z is x / 2.

    se: a gate a channel, from the means of all channels; about C^2 / 8 numbers.
    eca: a gate a channel, from the means of its neighbours; `kernel` numbers, 3 for C = 64.
    cbam: a gate a channel, as se from means and maxima; behind it one a place, from its neighbours.

    What is pooled is brought to mean 0 and variance 1, for a frozen network's numbers are of any
    size, and large ones drive gates to 0 or 2, where no gradient brings them back.

    Shape: (B, C, H, W) -> (B, C, H, W), H and W at least 2. In a transformer the map is the square
    of the patches' tokens. Class token and registers have no place in it: they are not pooled, and
    nothing is added to them. A place means where a patch lies; what its token holds has come from
    all over the image, by the attention before.

    It cannot be folded: gates differ from image to image, and weights do not. Averaged adapters
    have the average z in `eca` alone, where z is linear in what is trained.

    Args:
        channels: C.
        gate: se, eca or cbam.
        options: of the gate: `reduction` (se, cbam) and `kernel` (eca, cbam).

    Raises:
        ValueError: an unknown gate, or an option out of range.
        TypeError: an option that the gate does not have.

    Source: SE, arXiv 1709.01507; ECA, arXiv 1910.03151; CBAM, arXiv 1807.06521; 1 + tanh behind a
    normalisation, from zero: GCT, arXiv 1909.11519.
    """

    min_size = 2  # it sees more than one place at a time: tokens come as a square map

    def __init__(self, channels: int, gate: _Gate = "se", **options: Any) -> None:
        super().__init__()
        if gate not in get_args(_Gate):
            raise ValueError(f"gate must be one of {', '.join(get_args(_Gate))}, got {gate!r}")
        kinds: dict[str, Any] = {"se": SqueezeExcitation, "eca": EfficientChannel, "cbam": Cbam}
        self.gate: nn.Module = kinds[gate](channels, **options)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the residual, (B, C, H, W)."""
        if min(x.shape[2:]) < self.min_size:
            raise RuntimeError(f"attention needs a map of at least 2x2, got {tuple(x.shape[2:])}")
        residual: Tensor = (self.gate(x) - 1) * x
        return residual


class SqueezeExcitation(nn.Module):
    """z = W2 ReLU(W1 n(m) + b1) + b2, m (C,) the means over the places, n the normalisation.

    Args:
        channels: C.
        reduction: W1 is (C // reduction, C), with at least one row.

    Raises:
        ValueError: a reduction below 1.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        if reduction < 1:
            raise ValueError(f"reduction must be at least 1, got {reduction}")
        width = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, width)
        self.excite = _zero(nn.Linear(width, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> gates (B, C, 1, 1)."""
        return _gate(self.logits(x.mean((2, 3))))[:, :, None, None]

    def logits(self, pooled: Tensor) -> Tensor:
        """(B, C) -> z, (B, C)."""
        z: Tensor = self.excite(self.squeeze(_normalised(pooled)).relu())
        return z


class EfficientChannel(nn.Module):
    """z_c = sum_i w_i n(m)_(c + i), m the means over the places, i over the channel's neighbours.

    Args:
        channels: C.
        kernel: how many w; default: (1 + log2 C) / 2, rounded down and made odd, as published.

    Raises:
        ValueError: a kernel that is not odd.
    """

    def __init__(self, channels: int, kernel: int | None = None) -> None:
        super().__init__()
        if kernel is None:
            kernel = int((1 + math.log2(channels)) / 2) // 2 * 2 + 1
        _check_odd(kernel)
        self.mix = _zero(nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> gates (B, C, 1, 1)."""
        z = self.mix(_normalised(x.mean((2, 3)))[:, None])
        return _gate(z)[:, 0, :, None, None]


class Cbam(nn.Module):
    """By channel z = M(means) + M(maxima), M as in `SqueezeExcitation`; then, of what that leaves,

    by place z = K * n(mean over the channels, maximum over the channels) + b, each of the two maps
    normalised over its places. (The authors' program has a BatchNorm behind K.)

    Args:
        channels: C.
        reduction: as in `SqueezeExcitation`.
        kernel: K is (1, 2, kernel, kernel).

    Raises:
        ValueError: a reduction below 1, or a kernel that is not odd.
    """

    def __init__(self, channels: int, reduction: int = 16, kernel: int = 7) -> None:
        super().__init__()
        _check_odd(kernel)
        self.channel = SqueezeExcitation(channels, reduction)
        self.place = _zero(nn.Conv2d(2, 1, kernel, padding=kernel // 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> gates (B, C, H, W)."""
        z = self.channel.logits(x.mean((2, 3))) + self.channel.logits(x.amax((2, 3)))
        by_channel = _gate(z)[:, :, None, None]
        x = by_channel * x
        pooled = torch.stack([x.mean(1), x.amax(1)], dim=1)
        return by_channel * _gate(self.place(_normalised(pooled, axes=2)))


def _normalised(pooled: Tensor, axes: int = 1) -> Tensor:
    """Mean 0 and variance 1 over the last axes."""
    return functional.layer_norm(pooled, pooled.shape[-axes:])


def _gate(z: Tensor) -> Tensor:
    return 2 * z.sigmoid()


def _zero(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _check_odd(kernel: int) -> None:
    if kernel < 1 or kernel % 2 != 1:
        raise ValueError(f"kernel must be odd and at least 1, got {kernel}")
