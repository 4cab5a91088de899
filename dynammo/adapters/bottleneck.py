"""AdaptFormer: a narrow non-linear path beside or behind each MLP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor, nn

from dynammo.adapters.base import LayerAdapter, Place, is_plain

_Mode = Literal["parallel", "serial"]
_GATES = ("SEModule", "SqueezeExciteCl")  # timm's: layers named as an MLP's are


class BottleneckAdapter(LayerAdapter):
    """A(x) = scale * (U ReLU(D x + d) + u), D (width, C) and U (C, width).

    parallel: MLP(x) + A(x), beside the MLP; serial: y + A(y), behind it, y = MLP(x). In AdaptFormer
    the parallel path takes what comes before the block's LayerNorm, here what comes behind it, as
    the MLP does. A network without MLPs has it at each convolution larger than 1x1 that keeps
    channels and resolution (arXiv 2208.07463 puts it beside such).

    U, u and d are zero at the start and D is drawn as a linear layer's weights are, so training
    starts from the pretrained network. 2 C width + C + width numbers. It is not linear and cannot
    be folded.

    Args:
        layer: the frozen MLP or convolution.
        width: of the bottleneck, at least 1.
        scale: of the residual, fixed.
        mode: parallel or serial.

    Raises:
        ValueError: a width below 1, or an unknown mode.

    Source: AdaptFormer, arXiv 2205.13535; serial: arXiv 1902.00751.
    """

    def __init__(
        self, layer: nn.Module, width: int = 64, scale: float = 0.1, mode: _Mode = "parallel"
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        if mode not in get_args(_Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(_Mode))}, got {mode!r}")
        self.place: Place = "beside" if mode == "parallel" else "after"
        self.scale = float(scale)
        channels, is_map = _channels(layer)
        make: Any = _convolution if is_map else nn.Linear
        self.down = make(channels, width)
        self.up = make(width, channels)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    @staticmethod
    def choose(modules: Mapping[str, nn.Module]) -> list[str]:
        """MLPs; where there are none, convolutions that keep the shape of their input."""
        names = [name for name, module in modules.items() if _is_mlp(module)]
        return names or [name for name, module in modules.items() if _keeps_shape(module)]

    def forward(self, x: Tensor) -> Tensor:
        """What the MLP takes, or gives -> the residual of its output."""
        residual: Tensor = self.scale * self.up(self.down(x).relu())
        return residual


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1)


def _is_mlp(module: nn.Module) -> bool:
    """Two layers, of timm's names, that end with as many channels as they start with."""
    first, last = _layer(module, "fc1", "fc1_g"), _layer(module, "fc2")
    if first is None or last is None or type(module).__name__ in _GATES:
        return False
    return len(last.weight) == first.weight.shape[1]


def _layer(module: nn.Module, *names: str) -> nn.Linear | nn.Conv2d | None:
    """The linear layer or convolution of that name; some have a normalisation with it."""
    children = dict(module.named_children())
    for name in names:
        for part in children[name].modules() if name in children else ():
            if isinstance(part, nn.Linear | nn.Conv2d):
                return part
    return None


def _channels(module: nn.Module) -> tuple[int, bool]:
    """Of what an MLP or a convolution takes, and whether they are the first axis of a map."""
    layer: Any = _layer(module, "fc1", "fc1_g") or module
    is_map = isinstance(layer, nn.Conv2d)
    return (layer.in_channels if is_map else layer.in_features), is_map


def _keeps_shape(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or not is_plain(module):
        return False
    same = module.in_channels == module.out_channels and module.stride == (1, 1)
    return same and max(module.kernel_size) > 1
