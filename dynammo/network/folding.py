"""Fold adapters into the frozen layers at which they stand: the cost of the bare backbone.

A stage that begins with convolutions sees its adapter's output only through them. With a linear
adapter, A(x) = W x + b at every pixel, and a convolution K (no groups),

    K * (x + A(x)) = (K (I + W)) * x + K b,

so (I + W) goes into the kernel and K b, a constant a channel, into the convolution's bias or into
the mean of the BatchNorm behind it. What remains is the backbone with other numbers in it: the same
graph, the same parameters, the same multiply-accumulates. Under zero padding K b would be another
number at the border, so there b must be absent. An average pool without padding in front of a
convolution (the shortcuts of ResNet-D) changes nothing: the mean of (I + W) x + b over a window is
(I + W) times the mean of x, plus b.

An adapter for a layer folds into that layer by itself, where it can
(`dynammo.adapters.base.LayerAdapter`).

Position by position: an adapter that cannot be folded stays, and the others go. What stays can
still be made cheaper where the weights need no longer fit the bare backbone, as in an exported
program: `cheapen`.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynammo.config import AdapterConfig, ArchitectureConfig
from dynammo.data.formats.pictures import Form
from dynammo.network.adapted import AdaptedStage
from dynammo.network.layouts import ChannelsFirst
from dynammo.network.network import Network, build_network
from dynammo.network.tracing import PLAIN_CONVOLUTIONS, LayerTracer, trace
from dynammo.state import State


class Folded(NamedTuple):
    """`weights` of the backbone with adapters in it, and the positions of those that were `kept`
    out of it, with what kept them.
    """

    weights: State
    kept: dict[str, list[str]]


def why_not_foldable(network: Network) -> dict[str, list[str]]:
    """The positions whose adapters cannot be folded, each with what keeps it from that."""
    stages = network.stages().items()
    found = {name: _problems(stage) for name, stage in stages if isinstance(stage, AdaptedStage)}
    return {name: problems for name, problems in found.items() if problems}


def fold_adapters(network: Network) -> Folded:
    """Put every adapter that can be folded (`why_not_foldable`) into the backbone's weights.

    The network itself stays as it is. Products are taken in float64; features differ by float32
    rounding only, at most 1e-4 of the largest (measured in tests/dynammo/network/test_folding.py).

    Returns:
        Where nothing is kept, a state dict for `build_network(config, weights, form)` without
        adapter, which computes what the network with its adapters computes; else for a network with
        the same adapters at the positions that are left.
    """
    kept = why_not_foldable(network)
    backbone = copy.deepcopy(network.backbone)
    for name in network.positions:
        stage = backbone.get_submodule(name)
        if isinstance(stage, AdaptedStage):
            if name not in kept:
                _fold(stage)
            backbone.set_submodule(name, stage.stage)
    weights = {key: value.detach().cpu().clone() for key, value in backbone.state_dict().items()}
    return Folded(weights, kept)


def deployed_network(
    config: ArchitectureConfig, weights: State | None, form: Form | int, adapter: AdapterConfig
) -> Network:
    """What is left of a network where every adapter that can be folded is: to count its work.

    Takes what `build_network` does; the adapters that are left are fresh ones.
    """
    adapted = build_network(config, weights, form, adapter)
    if kept := why_not_foldable(adapted):
        left = config.model_copy(update={"positions": list(kept)})
        return build_network(left, weights, form, adapter)
    return build_network(config, weights, form)


def cheapen(network: Network) -> Network:
    """A copy of the network that computes the same, every adapter as cheaply as it goes.

    Position by position: a linear adapter goes into the convolutions behind it, or where that is
    not possible becomes one 1x1 convolution (I + W) x + b, without the sum; an adapter with a
    method `fused` is replaced by what that gives; any other stays. Results differ by float32
    rounding only: at most 1e-5 of the largest feature (measured in
    tests/dynammo/network/test_folding.py).
    """
    cheap = copy.deepcopy(network)
    for name, stage in cheap.stages().items():
        if isinstance(stage, AdaptedStage):
            cheap.backbone.set_submodule(name, _cheapened(stage))
    return cheap.eval()


def _cheapened(stage: AdaptedStage) -> nn.Module:
    if not _problems(stage):
        _fold(stage)
        return stage.stage
    if hasattr(stage.adapter, "as_linear") and not _is_turned(stage):
        return nn.Sequential(_with_identity(*_linear(stage.adapter)), stage.stage)
    if hasattr(stage.adapter, "fused"):
        make: Any = stage.adapter.fused
        return AdaptedStage(make(), stage.stage, stage.layout)
    return stage


def _is_turned(stage: AdaptedStage) -> bool:
    """Whether the adapter is shown what the stage is given in another layout."""
    return not isinstance(stage.layout, ChannelsFirst | None)


@torch.no_grad()
def _with_identity(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """(I + W) x + b as a 1x1 convolution."""
    channels = len(weight)
    convolution = nn.Conv2d(channels, channels, 1, bias=bias is not None, device=weight.device)
    identity = torch.eye(channels, dtype=torch.float64, device=weight.device)
    convolution.weight.copy_((identity + weight.double())[:, :, None, None])
    if bias is not None and convolution.bias is not None:
        convolution.bias.copy_(bias)
    convolution.weight.data = convolution.weight.contiguous(memory_format=torch.channels_last)
    convolution.requires_grad_(False)
    return convolution


@torch.no_grad()
def _fold(stage: AdaptedStage) -> None:
    """Put the adapter into its layer, or into the stage behind it."""
    if hasattr(stage.adapter, "fold_into"):
        fold_into: Any = stage.adapter.fold_into
        fold_into(stage.stage)
        return
    weight, bias = _linear(stage.adapter)
    for convolution, norm in _consumers(stage.stage):
        kernel = convolution.weight.double()
        if bias is not None:
            constant = torch.einsum("oihw,i->o", kernel, bias.double())
            if convolution.bias is not None:
                convolution.bias += constant.to(convolution.bias.dtype)
            elif norm is not None and norm.running_mean is not None:
                norm.running_mean -= constant.to(norm.running_mean.dtype)
        convolution.weight += torch.einsum("oihw,ij->ojhw", kernel, weight.double()).float()


def _problems(stage: AdaptedStage) -> list[str]:
    if hasattr(stage.adapter, "fold_into"):
        return []
    if not hasattr(stage.adapter, "as_linear"):
        return [f"{type(stage.adapter).__name__} is not linear (it has no method as_linear)"]
    try:
        consumers = _consumers(stage.stage)
    except ValueError as error:
        return [str(error)]
    if _linear(stage.adapter)[1] is None:
        return []
    problems = []
    for convolution, norm in consumers:
        if convolution.kernel_size != (1, 1) or convolution.padding not in (0, (0, 0)):
            problems.append("its bias would meet the padding of a convolution; choose bias: false")
        elif convolution.bias is None and norm is None:
            problems.append("the convolution behind it has neither a bias nor a BatchNorm")
    return problems


def _linear(adapter: nn.Module) -> tuple[Tensor, Tensor | None]:
    """W (C, C) and b (C,) of an adapter A(x) = W x + b; b is None where there is none."""
    method: Any = adapter.as_linear
    weight, bias = method()
    return weight, bias


def _consumers(stage: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d | None]]:
    """The convolutions that take a stage's input, each with the BatchNorm right behind it, if any.

    Raises:
        ValueError: something else takes the input as well, or the stage cannot be traced.
    """
    try:
        graph = trace(LayerTracer(), stage)
    except Exception as error:  # the stage's own code ran, on stand-ins for tensors
        raise ValueError(f"the stage behind it cannot be traced ({error})") from None
    modules = dict(stage.named_modules())
    source = next(node for node in graph.nodes if node.op == "placeholder")
    found = []
    pending = list(source.users)
    while pending:
        user = pending.pop(0)
        module = modules.get(str(user.target)) if user.op == "call_module" else None
        if _commutes(module):
            pending.extend(user.users)
            continue
        # Other subclasses may do something to their weights before they use them.
        plain = type(module).__name__ in PLAIN_CONVOLUTIONS
        if not isinstance(module, nn.Conv2d) or not plain or module.groups != 1:
            what = type(module).__name__ if module is not None else str(user.target)
            raise ValueError(f"its output goes into {what}, not only into plain convolutions")
        norms = [modules.get(str(n.target)) for n in user.users if n.op == "call_module"]
        norm = norms[0] if len(user.users) == 1 and norms else None
        found.append((module, norm if isinstance(norm, nn.BatchNorm2d) else None))
    return found


def _commutes(module: nn.Module | None) -> bool:
    """Whether module((I + W) x + b) = (I + W) module(x) + b: true means of nothing but x."""
    if type(module) is nn.AvgPool2d:
        return module.padding in (0, (0, 0)) and module.divisor_override is None
    return type(module) is nn.Identity
