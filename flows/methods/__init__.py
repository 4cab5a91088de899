"""How each kind of method goes through a batch: learn it, and be measured after it.

`dynammo.methods` says what a method is; its `shared_adapters` decide which of these files leads it
through. The flow treats all alike.
"""

from __future__ import annotations

from dynammo.methods import METHODS
from dynammo.methods.base import Method
from flows.methods.base import Steps
from flows.methods.own_network import OwnNetwork
from flows.methods.shared_features import SharedFeatures
from flows.methods.task_heads import TaskHeads


def steps_of(name: str) -> Steps:
    """What leads the method of that name through a batch."""
    method = METHODS[name]
    if issubclass(method, Method):
        return OwnNetwork(name)
    return TaskHeads(name) if method.shared_adapters == "each" else SharedFeatures(name)
