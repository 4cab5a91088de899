"""SSF: scale and shift features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynammo.adapters.base import LayerAdapter, Place, is_plain

_NORMS = (nn.LayerNorm, nn.GroupNorm)


class ScaleShiftAdapter(LayerAdapter):
    """y -> (1 + s) y + b after each operation, one s and one b a channel: A(y) = s y + b.

    Operations are linear layers, convolutions and normalisations in the adapted stages; after a
    convolution with a BatchNorm behind it once, between the two. Where an operation has no bias
    there is no b, so that everything folds into the weights that are there. What is trained is
    s = scale - 1, which weight decay pulls towards the pretrained network. Being affine in the
    layers' outputs, what is averaged over n adapters is exactly what each layer adds.

    Args:
        layer: the frozen operation.
        deviation: standard deviation of the initial s and b. The paper draws with 0.02; 0 starts
            from the pretrained network.

    Raises:
        ValueError: a negative deviation.

    Source: arXiv 2210.08823.
    """

    def __init__(self, layer: nn.Module, deviation: float = 0.0) -> None:
        super().__init__()
        if deviation < 0:
            raise ValueError(f"deviation must be at least 0, got {deviation}")
        given: Any = layer
        # timm's BatchNorm may hold an activation: in front of it is behind the convolution.
        self.place: Place = "before" if isinstance(layer, nn.BatchNorm2d) else "after"
        shape = (len(given.weight), *(1,) * _trailing_axes(layer))
        self.scale = nn.Parameter(torch.zeros(shape))
        self.shift = nn.Parameter(torch.zeros(shape)) if given.bias is not None else None
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=deviation)

    @staticmethod
    def choose(modules: Mapping[str, nn.Module]) -> list[str]:
        """Operations with an affine output."""
        return [name for name, module in modules.items() if _is_affine(module)]

    def forward(self, x: Tensor) -> Tensor:
        """The operation's output, or a BatchNorm's input -> the residual."""
        residual = self.scale * x
        return residual if self.shift is None else residual + self.shift

    @torch.no_grad()
    def fold_into(self, layer: nn.Module) -> None:
        """W <- (1 + s) W and c <- (1 + s) c + b; of a BatchNorm, c <- c + W (s m + b) / sigma."""
        given: Any = layer
        weight, bias = given.weight, given.bias
        scale = self.scale.double().flatten()
        shift = torch.zeros_like(scale) if self.shift is None else self.shift.double().flatten()
        if self.place == "before":
            sigma = (given.running_var.double() + given.eps).sqrt()
            offset = weight.double() * (scale * given.running_mean.double() + shift) / sigma
            bias.copy_(bias.double() + offset)
        elif bias is not None:
            bias.copy_((1 + scale) * bias.double() + shift)
        axes = (-1, *(1,) * (weight.dim() - 1))
        weight.copy_((1 + scale).view(axes) * weight.double())


def _is_affine(module: nn.Module) -> bool:
    given: Any = module
    if isinstance(module, nn.BatchNorm2d):
        return module.affine and module.track_running_stats
    if isinstance(module, nn.Conv2d):  # without a bias there is a normalisation behind it
        return is_plain(module) and module.bias is not None
    if isinstance(module, _NORMS):  # some of timm's hold an activation
        plain = not [*module.children()] and given.weight is not None
        return plain and given.weight.dim() == 1
    return isinstance(module, nn.Linear)


def _trailing_axes(layer: nn.Module) -> int:
    """How many axes come behind the channels' in a layer's output: of timm's LayerNorm2d, too."""
    maps = isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.GroupNorm)
    return 2 if maps or "2d" in type(layer).__name__ else 0
