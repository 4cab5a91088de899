"""Fold the BatchNorms of an exported program into the convolutions before them.

In eval mode a BatchNorm is y = g (x - m) / sqrt(v + e) + b with constants for each channel. Behind
a convolution x = K * z + c this is another convolution: its kernel K g / sqrt(v + e), its bias
(c - m) g / sqrt(v + e) + b. Only programs are changed: a state dict with such kernels would no
longer fit the backbone that it is named after.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.utils.fusion import fuse_conv_bn_weights

_aten = torch.ops.aten
_TRANSPOSED = (_aten.conv_transpose2d.input,)
_CONVOLUTIONS = (_aten.conv2d.default, _aten.conv2d.padding, *_TRANSPOSED)


class Fusion(NamedTuple):
    """A convolution and the BatchNorm behind it: the names of their tensors (none: it has no such)
    and what else their fusion takes.
    """

    weight: str
    bias: str | None
    mean: str
    variance: str
    gain: str | None
    shift: str | None
    epsilon: float
    transposed: bool

    def fused(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`weight` and `bias` of the convolution that does both, float32."""

        def named(name: str | None) -> Any:  # torch's types leave out that a bias may be missing
            return None if name is None else values[name].detach().double()

        weight, bias = fuse_conv_bn_weights(
            named(self.weight),
            named(self.bias),
            named(self.mean),
            named(self.variance),
            self.epsilon,
            named(self.gain),
            named(self.shift),
            self.transposed,
        )
        layout = torch.channels_last if weight.dim() == 4 else torch.contiguous_format
        return {"weight": weight.float().contiguous(memory_format=layout), "bias": bias.float()}


class Fused(NamedTuple):
    """A `module` to call, or to export again, and what became one in it: `fusions[name]` are its
    parameters `{name}_weight` and `{name}_bias`.
    """

    module: fx.GraphModule
    fusions: dict[str, Fusion]


@torch.no_grad()
def fuse_batch_norms(program: ExportedProgram) -> Fused:
    """The program's graph, with every BatchNorm in the convolution before it where there is one.

    It is read off the traced operations, not off the modules, so it holds for a network of any
    make: a kernel that is computed (weight standardisation) is no constant, a convolution whose
    output is used elsewhere too has several users, and both are left alone. Products are taken in
    float64; the results differ by float32 rounding only, at most 1e-5 of the largest output
    (measured in tests/dynammo/network/test_fusion.py).

    Args:
        program: `torch.export.export` of a module in eval mode.

    Returns:
        `batch_norms` counts what is left in its module.
    """
    module = program.module(check_guards=False)
    graph = module.graph
    values: dict[str, Tensor] = {}
    values |= module.named_parameters(remove_duplicate=False)
    values |= module.named_buffers(remove_duplicate=False)
    fusions = {}
    for norm in graph.find_nodes(op="call_function", target=_aten.batch_norm.default):
        convolution = norm.args[0]
        fusion = _fusion(norm, convolution)
        if fusion is None:
            continue
        name = f"fused_{convolution.name}"
        fusions[name] = fusion
        with graph.inserting_before(convolution):
            nodes = [
                _constant(module, f"{name}_{part}", value)
                for part, value in fusion.fused(values).items()
            ]
        convolution.args = (convolution.args[0], *nodes, *convolution.args[3:])
        norm.replace_all_uses_with(convolution)
        graph.erase_node(norm)
    for node in list(graph.nodes):
        _out_of_place(node)
    graph.eliminate_dead_code()
    _drop_unused(module)
    module.recompile()
    return Fused(module, fusions)


def batch_norms(module: fx.GraphModule) -> int:
    """How many BatchNorms a graph still has."""
    return len(module.graph.find_nodes(op="call_function", target=_aten.batch_norm.default))


def _fusion(norm: fx.Node, convolution: Any) -> Fusion | None:
    """How the two become one; None where they cannot."""
    if not isinstance(convolution, fx.Node) or convolution.target not in _CONVOLUTIONS:
        return None
    _, gain, shift, mean, variance, training, _, epsilon, *_ = norm.args
    rest = convolution.args[3:]
    # A transposed convolution's kernel is laid out otherwise: groups stand at another place.
    transposed = convolution.target in _TRANSPOSED
    groups = rest[3] if transposed and len(rest) > 3 else 1
    if training or len(convolution.users) != 1 or convolution.kwargs or groups != 1:
        return None
    weight, bias = convolution.args[1], (*convolution.args, None)[2]
    nodes: list[Any] = [weight, bias, mean, variance, gain, shift]
    if any(node is None for node in (weight, mean, variance)):
        return None
    # What is no attribute is computed, and no constant.
    if any(node is not None and getattr(node, "op", None) != "get_attr" for node in nodes):
        return None
    names = [None if node is None else str(node.target) for node in nodes]
    return Fusion._make([*names, epsilon, transposed])


def _constant(module: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    module.register_parameter(name, nn.Parameter(value, requires_grad=False))
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
