"""What modules of a backbone are given: found out with images of noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynammo.errors import ConfigError
from dynammo.network.layouts import intermediate_maps
from dynammo.network.multilevel import level_features, signed_levels

_IMAGES = 3


class Probed(NamedTuple):
    """The shape of what each module is given first, in order of execution; whether each level has
    negative values, none without levels; the features, (B, D).
    """

    shapes: dict[str, torch.Size]
    signed: list[bool] | None
    features: Tensor


@torch.no_grad()
def probe(
    backbone: nn.Module, names: Iterable[str], size: int, levels: int | None, images: int = 1
) -> Probed:
    """Noise through the bare backbone.

    Raises:
        ConfigError: the backbone does not take images of this size, or gives no features (B, D).
    """
    shapes: dict[str, torch.Size] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def noted(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                shapes.setdefault(name, inputs[0].shape)

        return noted

    handles = [backbone.get_submodule(name).register_forward_pre_hook(note(name)) for name in names]
    try:
        noise = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))
        signed = None
        if levels is None:
            features = backbone(noise)
        else:
            maps = intermediate_maps(backbone, noise, levels)
            signed = signed_levels(maps)
            features = level_features(maps, signed)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        made_for = _made_for(backbone)
        raise ConfigError(
            [f"image.size {size} does not suit this backbone{made_for}: {reason}"]
        ) from None
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(features, Tensor) or features.dim() != 2:
        kind = type(backbone).__name__
        raise ConfigError([f"backbone.name: {kind} gives no feature vector of an image"])
    return Probed(shapes, signed, features)


def _made_for(backbone: nn.Module) -> str:
    config: Any = getattr(backbone, "pretrained_cfg", None) or {}
    return f", made for {config['input_size'][-1]}" if config.get("fixed_input_size") else ""


def passed_by_images(
    backbone: nn.Module, names: Iterable[str], size: int, levels: int | None
) -> list[str]:
    """Those of some modules that are given something of every image, in order of execution.

    Left out is what is not called (EVA-02's smaller members use the weight of their qkv without
    calling it) or works on a table (position biases of Swin V2).
    """
    shapes = probe(backbone, names, size, levels, _IMAGES).shapes
    return [name for name, shape in shapes.items() if shape[0] % _IMAGES == 0]


def check_names(backbone: nn.Module, positions: Sequence[str]) -> None:
    """Refuse names of modules that a backbone does not have, and modules in one another.

    Raises:
        ConfigError: all problems at once.
    """
    known = [name for name, _ in backbone.named_modules() if name]
    upper = ", ".join(name for name in known if name.count(".") < 2)
    problems = [
        f"backbone.positions: there is no module {name!r}; known: {upper}, and those inside them"
        for name in positions
        if name not in known
    ]
    if len(set(positions)) != len(positions):
        problems.append(f"backbone.positions names a module twice: {list(positions)}")
    problems += [
        f"backbone.positions: {inner!r} is inside {outer!r}"
        for inner in positions
        for outer in positions
        if inner.startswith(f"{outer}.")
    ]
    if problems:
        raise ConfigError(problems)
