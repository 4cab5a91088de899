"""The network as adapter training runs it: the frozen layers without their BatchNorms.

In eval mode a BatchNorm is y = g (x - m) / sqrt(v + e) + b with constants for each channel. Behind
a frozen convolution x = K * z + c it is part of that convolution, with the kernel K g / sqrt(v + e)
and the bias (c - m) g / sqrt(v + e) + b: a pass over the feature map less, forwards and backwards.
`dynammo.network.fusion` does this to exported programs, which cannot be trained.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dynammo.network.network import Network
from dynammo.network.tracing import PLAIN_CONVOLUTIONS, LayerTracer, trace

_NORMS = ("BatchNorm2d", "BatchNormAct2d")  # torch's, and timm's with an activation in it


def without_frozen_norms(network: Network) -> Network:
    """A network that computes the same and shares the adapters, to train them in.

    Each frozen BatchNorm right behind a frozen convolution, whose output goes nowhere else, goes
    into it; any other stays, and all do where the forward pass cannot be traced. Products are taken
    in float64; features differ by float32 rounding only, at most 1e-5 of the largest (measured in
    tests/dynammo/network/test_frozen_norms.py).

    Returns:
        A copy whose adapters are the network's own modules: training the one trains the other. Its
        backbone's state dict no longer fits the backbone that it is named after.
    """
    adapters = list(network.adapters().values())
    # What is in the memo already is not copied.
    fused = copy.deepcopy(network, {id(adapter): adapter for adapter in adapters})
    try:
        graph = trace(LayerTracer(adapters), fused)
    except Exception:  # a backbone's own code ran, on stand-ins for tensors: anything may come
        return fused
    modules = dict(fused.named_modules(remove_duplicate=False))
    calls = [node for node in graph.nodes if node.op == "call_module"]
    count = Counter(id(modules[str(node.target)]) for node in calls)
    for node in calls:
        norm, source = modules[str(node.target)], node.args[0]
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        convolution = modules[str(source.target)]
        once = count[id(norm)] == count[id(convolution)] == 1
        if once and _constant(norm) and _plain(convolution):
            _absorb(convolution, norm)
            rest = norm.children()  # of timm's: dropout and activation, in this order
            fused.set_submodule(str(node.target), nn.Sequential(*rest))
    return fused


def _plain(module: nn.Module) -> bool:
    """A frozen convolution that uses its weights as they are."""
    return type(module).__name__ in PLAIN_CONVOLUTIONS and not module.weight.requires_grad


def _constant(module: nn.Module) -> bool:
    """A frozen BatchNorm that normalises by what it has stored, not by the batch."""
    if not isinstance(module, nn.BatchNorm2d) or type(module).__name__ not in _NORMS:
        return False
    frozen = not any(parameter.requires_grad for parameter in module.parameters())
    return frozen and not module.training and module.running_mean is not None


@torch.no_grad()
def _absorb(convolution: nn.Module, norm: nn.Module) -> None:
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    bias, gain, shift = convolution.bias, norm.weight, norm.bias
    kernel, offset = fuse_conv_bn_weights(
        _exact(convolution.weight),
        None if bias is None else _exact(bias),
        _exact(norm.running_mean),
        _exact(norm.running_var),
        norm.eps,
        None if gain is None else _exact(gain),
        None if shift is None else _exact(shift),
    )
    weight = kernel.to(convolution.weight).contiguous(memory_format=torch.channels_last)
    convolution.bias = nn.Parameter(offset.to(convolution.weight), requires_grad=False)
    convolution.weight = nn.Parameter(weight, requires_grad=False)


def _exact(value: Tensor) -> Tensor:
    """In float64, on the CPU: not every device has it."""
    return value.cpu().double()
