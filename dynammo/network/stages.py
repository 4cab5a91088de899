"""Where adapters go: the stages of a backbone, found by a rule."""

from __future__ import annotations

import re

from torch import nn

from dynammo.errors import ConfigError
from dynammo.network.layouts import has_one_resolution

_ADAPTED_STAGES = 4
_CONTAINERS = ("blocks", "stages", "layers")


def default_stages(backbone: nn.Module) -> list[list[str]]:
    """The last four stages, each as the names of the modules that it is made of, in order.

    Of a network with levels of resolution a stage is one module: `layer1..layer4` of ResNets,
    `blocks.N` of MobileNets and EfficientNets, `stages.N` of ConvNeXt, MobileViT and
    EfficientFormer, `layers.N` of Swin, `sN` of RegNets. None is the stem, nor the stage right
    behind it where that is the first of a numbered list. Where all blocks have one resolution (ViT,
    DeiT, EVA), the stages are the four quarters of the list.

    Raises:
        ConfigError: the network has no such stages; positions must be given by name.
    """
    for container in _CONTAINERS:
        parts = getattr(backbone, container, None)
        if not isinstance(parts, nn.Sequential | nn.ModuleList):
            continue
        names = [f"{container}.{i}" for i in range(len(parts))]
        if not has_one_resolution(backbone):
            return [[name] for name in names[1:][-_ADAPTED_STAGES:]]
        count = min(_ADAPTED_STAGES, len(names))
        bounds = [i * len(names) // count for i in range(count + 1)]
        return [names[bounds[i] : bounds[i + 1]] for i in range(count)]
    names = [name for name, _ in backbone.named_children() if re.fullmatch(r"(layer|s)\d+", name)]
    if not names:
        children = ", ".join(name for name, _ in backbone.named_children())
        raise ConfigError(
            [f"backbone.positions: no stages found by name; choose among its modules ({children})"]
        )
    return [[name] for name in names[-_ADAPTED_STAGES:]]


def default_positions(backbone: nn.Module) -> list[str]:
    """The modules that an adapter goes before: the first of each of the last four stages.

    Raises:
        ConfigError: see `default_stages`.
    """
    return [stage[0] for stage in default_stages(backbone)]
