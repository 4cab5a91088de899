"""BitFit: the biases of linear layers are all that is trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dynammo.adapters.base import LayerAdapter, Place


class BiasAdapter(LayerAdapter):
    """y -> y + b, b one number a channel, after every linear layer that has a bias.

    Source: arXiv 2106.10199.
    """

    place: Place = "after"

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(layer.out_features))

    @staticmethod
    def choose(modules: Mapping[str, nn.Module]) -> list[str]:
        """Linear layers with a bias."""
        linear = {name: m for name, m in modules.items() if isinstance(m, nn.Linear)}
        return [name for name, layer in linear.items() if layer.bias is not None]

    def forward(self, y: Tensor) -> Tensor:
        """The layer's output -> the residual."""
        return self.shift.expand_as(y)

    @torch.no_grad()
    def fold_into(self, layer: nn.Linear) -> None:
        """The bias becomes c + b."""
        layer.bias.add_(self.shift)
