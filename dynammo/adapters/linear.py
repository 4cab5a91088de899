"""A linear adapter: one 1x1 convolution that starts at zero."""

from __future__ import annotations

from torch import Tensor, nn


class LinearAdapter(nn.Module):
    """A(x) = W x + b at every pixel, W and b zero at the start, so x + A(x) = x.

    Shape: (B, C, H, W) -> (B, C, H, W). C^2 + C trainable numbers. Being linear it merges exactly
    (the average of n adapters computes the average of their n outputs), and it can be folded into
    the convolutions behind it (`dynammo.network.folding`).

    Args:
        channels: C.
        bias: whether there is a b. Without one the adapter folds into padded convolutions too.

    Source: the serial 1x1 residual adapter of arXiv 1803.10082, without its BatchNorm.
    """

    min_size = 1

    def __init__(self, channels: int, bias: bool = True) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1, bias=bias)
        nn.init.zeros_(self.mix.weight)
        if self.mix.bias is not None:
            nn.init.zeros_(self.mix.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the residual, (B, C, H, W)."""
        residual: Tensor = self.mix(x)
        return residual

    def as_linear(self) -> tuple[Tensor, Tensor | None]:
        """W (C, C) and b (C,), or no b."""
        return self.mix.weight.detach()[:, :, 0, 0], self.mix.bias
