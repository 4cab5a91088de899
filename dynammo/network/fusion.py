"""Fold the BatchNorms of an exported program into the convolutions before them.

In eval mode a BatchNorm is y = g (x - m) / sqrt(v + e) + b with constants for each channel. Behind
a convolution x = K * z + c this is another convolution: its kernel K g / sqrt(v + e), its bias
(c - m) g / sqrt(v + e) + b. Only programs are changed: a state dict with such kernels would no
longer fit the backbone that it is named after.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.utils.fusion import fuse_conv_bn_weights

_aten = torch.ops.aten
_TRANSPOSED = (_aten.conv_transpose2d.input,)
_CONVOLUTIONS = (_aten.conv2d.default, _aten.conv2d.padding, *_TRANSPOSED)


@torch.no_grad()
def fuse_batch_norms(program: ExportedProgram) -> fx.GraphModule:
    """The program's graph, with every BatchNorm in the convolution before it where there is one.

    It is read off the traced operations, not off the modules, so it holds for a network of any
    make: a kernel that is computed (weight standardisation) is no constant, a convolution whose
    output is used elsewhere too has several users, and both are left alone. Products are taken in
    float64; the results differ by float32 rounding only, at most 1e-5 of the largest output
    (measured in tests/dynammo/network/test_fusion.py).

    Args:
        program: `torch.export.export` of a module in eval mode.

    Returns:
        A module to call, or to export again. `batch_norms` counts what is left in it.
    """
    module = program.module(check_guards=False)
    graph = module.graph
    for norm in graph.find_nodes(op="call_function", target=_aten.batch_norm.default):
        convolution = norm.args[0]
        numbers = _constants(module, norm, convolution)
        if numbers is None:
            continue
        kernel, offset, mean, variance, epsilon, gain, shift = numbers
        transposed = convolution.target in _TRANSPOSED
        weight, bias = fuse_conv_bn_weights(
            kernel, offset, mean, variance, epsilon, gain, shift, transposed
        )
        with graph.inserting_before(convolution):
            named = zip(("weight", "bias"), (weight, bias), strict=True)
            nodes = [_constant(module, f"{convolution.name}_{k}", v) for k, v in named]
        convolution.args = (convolution.args[0], *nodes, *convolution.args[3:])
        norm.replace_all_uses_with(convolution)
        graph.erase_node(norm)
    for node in list(graph.nodes):
        _out_of_place(node)
    graph.eliminate_dead_code()
    _drop_unused(module)
    module.recompile()
    return module


def batch_norms(module: fx.GraphModule) -> int:
    """How many BatchNorms a graph still has."""
    return len(module.graph.find_nodes(op="call_function", target=_aten.batch_norm.default))


def _constants(module: fx.GraphModule, norm: fx.Node, convolution: Any) -> Any:
    """What `fuse_conv_bn_weights` takes, in float64; None where the two cannot become one."""
    if not isinstance(convolution, fx.Node) or convolution.target not in _CONVOLUTIONS:
        return None
    _, gain, shift, mean, variance, training, _, epsilon, *_ = norm.args
    rest = convolution.args[3:]
    # A transposed convolution's kernel is laid out otherwise: groups stand at another place.
    groups = rest[3] if convolution.target in _TRANSPOSED and len(rest) > 3 else 1
    if training or len(convolution.users) != 1 or convolution.kwargs or groups != 1:
        return None
    weight, bias = convolution.args[1], (*convolution.args, None)[2]
    tensors = [_value(module, node) for node in (weight, bias, mean, variance, gain, shift)]
    given = [node is not None for node in (weight, bias, mean, variance, gain, shift)]
    if any(one and value is None for one, value in zip(given, tensors, strict=True)):
        return None
    if tensors[0] is None or tensors[2] is None or tensors[3] is None:
        return None
    kernel, offset, mean, variance, gain, shift = tensors
    return kernel, offset, mean, variance, epsilon, gain, shift


def _value(module: fx.GraphModule, node: Any) -> Tensor | None:
    """The parameter or buffer that a node stands for, in float64; None if it is computed."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Any = module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return cast(Tensor, value).detach().double()


def _constant(module: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    layout = torch.channels_last if value.dim() == 4 else torch.contiguous_format
    name = f"fused_{name}"
    tensor = value.detach().float().contiguous(memory_format=layout)
    module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    return module.graph.get_attr(name)


def _out_of_place(node: fx.Node) -> None:
    """hardtanh_(x) -> hardtanh(x), for an x that a convolution made and nothing else sees.

    Tracing calls that work in place, for a batch of any size, took most of the time of an export.
    """
    source = node.args[0] if node.op == "call_function" and node.args else None
    name, _, overload = str(node.target).removeprefix("aten.").partition(".")
    if not isinstance(source, fx.Node) or source.target not in _CONVOLUTIONS:
        return
    if name.endswith("_") and len(source.users) == 1 and hasattr(_aten, name[:-1]):
        node.target = getattr(getattr(_aten, name[:-1]), overload)


def _drop_unused(module: fx.GraphModule) -> None:
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    everything: Iterable[tuple[str, Tensor]] = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    for name, _ in everything:
        if name not in used:
            owner, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(owner), leaf)
