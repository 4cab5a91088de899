"""LoRA: a map of low rank beside linear layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynammo.adapters.base import LayerAdapter, Place, is_plain


class LoRAAdapter(LayerAdapter):
    """A(x) = (alpha / rank) B A x beside a layer W x + b: the layer becomes W + (alpha / rank) B A.

    It stands beside every linear layer (of a transformer: qkv, projections, MLP) and every 1x1
    convolution without groups in the adapted stages. A (rank, inputs) is drawn as the peft library
    draws it, uniformly within 1 / sqrt(inputs); B (outputs, rank) is zero, so training starts from
    the pretrained network. rank (inputs + outputs) numbers a layer. There is no dropout, peft's
    default.

    Averaging n adapters averages A and B, and the product of the means is not the mean of the
    products: close where each task starts from the adapter before it (`adapter.init: previous`).

    Names of the state are peft's (`blocks.0.attn.qkv.lora_A.weight`), which puts
    `base_model.model.` in front of them.

    Args:
        layer: the frozen layer.
        rank: of B A, at least 1; peft's `r`.
        alpha: peft's `lora_alpha`.
        rank_stabilised: alpha / sqrt(rank) in place of alpha / rank (arXiv 2312.03732).

    Raises:
        ValueError: a rank below 1.

    Source: arXiv 2106.09685.
    """

    place: Place = "beside"

    def __init__(
        self, layer: nn.Module, rank: int = 8, alpha: float = 8.0, rank_stabilised: bool = False
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        outputs, inputs = _weight(layer).shape[:2]
        self.scaling = alpha / (math.sqrt(rank) if rank_stabilised else rank)
        self.lora_A: nn.Conv2d | nn.Linear
        self.lora_B: nn.Conv2d | nn.Linear
        if isinstance(layer, nn.Conv2d):
            stride = layer.stride[0], layer.stride[1]
            self.lora_A = nn.Conv2d(inputs, rank, 1, stride, bias=False)
            self.lora_B = nn.Conv2d(rank, outputs, 1, bias=False)
        else:
            self.lora_A = nn.Linear(inputs, rank, bias=False)
            self.lora_B = nn.Linear(rank, outputs, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    @staticmethod
    def choose(modules: Mapping[str, nn.Module]) -> list[str]:
        """Linear layers and 1x1 convolutions."""
        return [name for name, module in modules.items() if _is_pointwise(module)]

    def forward(self, x: Tensor) -> Tensor:
        """What the layer takes -> the residual of its output."""
        residual: Tensor = self.scaling * self.lora_B(self.lora_A(x))
        return residual

    @torch.no_grad()
    def fold_into(self, layer: nn.Module) -> None:
        """W <- W + (alpha / rank) B A, the product taken in float64."""
        down, up = self.lora_A.weight.double(), self.lora_B.weight.double()
        weight = _weight(layer)
        product = self.scaling * (up.flatten(1) @ down.flatten(1))
        weight.copy_(weight.double() + product.view(weight.shape))


def _is_pointwise(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        whole = module.groups == 1 and module.padding in (0, (0, 0), "same", "valid")
        return is_plain(module) and module.kernel_size == (1, 1) and whole
    return isinstance(module, nn.Linear)


def _weight(layer: Any) -> Tensor:
    """A layer's weight, (outputs, inputs, ...)."""
    weight: Tensor = layer.weight
    return weight
