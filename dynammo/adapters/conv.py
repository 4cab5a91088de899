"""The paper's adapter: a non-linear 3x3 bottleneck without a bottleneck."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


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

    def fused(self) -> FusedConvAdapter:
        """What computes the same in eval mode, without BatchNorms; this adapter stays as it is."""
        return FusedConvAdapter(copy.deepcopy(self).double().eval())


class FusedConvAdapter(nn.Module):
    """A(x) = s ReLU(ConvT3x3'(ReLU(Conv3x3'(x)))), s = 1 or -1, for inference only.

    A BatchNorm in eval mode scales and shifts each channel, so it goes into the convolution before
    it. ReLU(a z) = a ReLU(z) holds for a >= 0 only: |alpha| goes into the second convolution, its
    sign stays outside.

    Args:
        adapter: in eval mode and float64, so that nothing is lost before the result is rounded to
            float32. It is used up.
    """

    def __init__(self, adapter: ConvAdapter) -> None:
        super().__init__()
        scale = adapter.alpha.detach()
        self.sign = -1 if scale < 0 else 1
        self.down = fuse_conv_bn_eval(adapter.down, adapter.down_norm)
        self.up = fuse_conv_bn_eval(adapter.up, adapter.up_norm, transpose=True)
        with torch.no_grad():
            for parameter in self.up.parameters():
                parameter.mul_(scale.abs())
        self.float().eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the residual, (B, C, H, W)."""
        residual = torch.relu(self.up(torch.relu(self.down(x))))
        return residual if self.sign > 0 else -residual
