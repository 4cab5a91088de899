"""Tracing that lets go of what it traced.

torch.fx leaves cycles behind: a tracer with its own closures, a graph with the module made from it.
Python frees cycles when it has seen enough new objects, however many MB hang on them: training held
the backbones of many tasks at a time.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx, nn

PLAIN_CONVOLUTIONS = ("Conv2d", "Conv2dSame")  # torch's, and timm's with another padding


class LayerTracer(fx.Tracer):
    """Goes down to convolutions, normalisations and linear layers of any make; `units` stay whole,
    too.
    """

    def __init__(self, units: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.units = {id(unit) for unit in units}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether it is one step of the graph."""
        layers = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
        if id(m) in self.units or isinstance(m, layers):
            return True
        return super().is_leaf_module(m, module_qualified_name)


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
