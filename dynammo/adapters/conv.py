"""The paper's adapter: a non-linear 3x3 bottleneck without a bottleneck."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvAdapter(nn.Module):
    """A(x) = alpha * ReLU(BN(ConvT3x3(ReLU(BN(Conv3x3(x)))))), added by the network to x.

    The convolution has no padding, so it shrinks each side by 2 and the transposed convolution
    restores it. Shape: (B, C, H, W) -> (B, C, H, W) with H, W >= 3. 18 C^2 + 6 C + 1 trainable
    numbers: 1.625 million for ResNet-18's four positions, as in the paper. (The convolutions'
    biases are idle before a BatchNorm; they are kept because the paper's count has them.)

    Args:
        channels: C.
        alpha: initial value of the learned scale; small, so that training starts near the
            pretrained network.

    Source: arXiv 2304.09042 (ACL), section 2; reused by arXiv 2404.14099 (DynaMMo).
    """

    min_size = 3

    def __init__(self, channels: int, alpha: float = 0.02) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels, 3)
        self.down_norm = nn.BatchNorm2d(channels)
        self.up = nn.ConvTranspose2d(channels, channels, 3)
        self.up_norm = nn.BatchNorm2d(channels)
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the residual, (B, C, H, W)."""
        x = torch.relu(self.down_norm(self.down(x)))
        x = torch.relu(self.up_norm(self.up(x)))
        return self.alpha * x
