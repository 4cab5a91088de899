"""Tracing that lets go of what it traced.

torch.fx leaves cycles behind: a tracer with its own closures, a graph with the module made from it.
Python frees cycles when it has seen enough new objects, however many MB hang on them: training held
the backbones of many tasks at a time.
"""

from __future__ import annotations

from torch import fx, nn


def trace(tracer: fx.Tracer, module: nn.Module) -> fx.Graph:
    """The module's graph. Raises whatever its forward pass raises on stand-ins for tensors."""
    try:
        return tracer.trace(module)
    finally:
        tracer.root = nn.Module()
        tracer.tensor_attrs = {}
        tracer.submodule_paths = None


def as_module(owner: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A module that runs a graph on the owner's parts, without what the result does not need."""
    module = fx.GraphModule(owner, graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    module.graph.owning_module = None
    return module
