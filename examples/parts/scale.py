"""The smallest adapter there is: one scale and one shift a channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScaleAdapter(nn.Module):
    """A(x) = s * x + b, with s and b of shape (1, C, 1, 1): 2 C trainable numbers.

    Shape: (B, C, H, W) -> (B, C, H, W).

    Args:
        channels: C.
        initial: initial value of s; at 0 training starts from the pretrained network.
    """

    min_size = 1

    def __init__(self, channels: int, initial: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1), float(initial)))
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the residual, (B, C, H, W)."""
        return self.scale * x + self.shift
