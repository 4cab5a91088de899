"""Fold linear adapters into the frozen convolutions behind them: the cost of the bare backbone.

A stage that begins with convolutions sees its adapter's output only through them. With a linear
adapter, A(x) = W x + b at every pixel, and a convolution K (no groups),

    K * (x + A(x)) = (K (I + W)) * x + K b,

so (I + W) goes into the kernel and K b, a constant a channel, into the convolution's bias or into
the mean of the BatchNorm behind it. What remains is the backbone with other numbers in it: the same
graph, the same parameters, the same multiply-accumulates. Under zero padding K b would be another
number at the border, so there b must be absent.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from dynammo.errors import ConfigError
from dynammo.merging.state import State
from dynammo.network import AdaptedStage, Network

_PLAIN = ("Conv2d", "Conv2dSame")  # torch's, and timm's with another padding


def why_not_foldable(network: Network) -> list[str]:
    """What keeps the adapters from being folded, a line each; empty where nothing does."""
    return [
        f"{name}: {problem}"
        for name, stage in network.stages().items()
        if isinstance(stage, AdaptedStage)
        for problem in _problems(stage)
    ]


def fold_adapters(network: Network) -> State:
    """Weights of a bare backbone that computes what the network with its adapters computes.

    The network itself stays as it is. Products are taken in float64.

    Returns:
        A state dict for `build_network(config, weights, size)` without adapter.

    Raises:
        ConfigError: see `why_not_foldable`.
    """
    if problems := why_not_foldable(network):
        raise ConfigError([f"this adapter cannot be folded: {line}" for line in problems])
    backbone = copy.deepcopy(network.backbone)
    for name in network.positions:
        stage = backbone.get_submodule(name)
        if isinstance(stage, AdaptedStage):
            backbone.set_submodule(name, _folded(stage))
    return {key: value.detach().cpu().clone() for key, value in backbone.state_dict().items()}


@torch.no_grad()
def _folded(stage: AdaptedStage) -> nn.Module:
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
    return stage.stage


def _problems(stage: AdaptedStage) -> list[str]:
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
        graph = _Tracer().trace(stage)
    except Exception as error:  # the stage's own code ran, on stand-ins for tensors
        raise ValueError(f"the stage behind it cannot be traced ({error})") from None
    modules = dict(stage.named_modules())
    source = next(node for node in graph.nodes if node.op == "placeholder")
    found = []
    for user in source.users:
        module = modules.get(str(user.target)) if user.op == "call_module" else None
        # Other subclasses may do something to their weights before they use them.
        plain = type(module).__name__ in _PLAIN
        if not isinstance(module, nn.Conv2d) or not plain or module.groups != 1:
            what = type(module).__name__ if module is not None else str(user.target)
            raise ValueError(f"its output goes into {what}, not only into plain convolutions")
        norms = [modules.get(str(n.target)) for n in user.users if n.op == "call_module"]
        norm = norms[0] if len(user.users) == 1 and norms else None
        found.append((module, norm if isinstance(norm, nn.BatchNorm2d) else None))
    return found


class _Tracer(fx.Tracer):
    """Records a stage's calls, with convolutions and normalisations of any make as units."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        units = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
        return isinstance(m, units) or super().is_leaf_module(m, module_qualified_name)
