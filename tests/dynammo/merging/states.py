"""Adapters as different as those of different diseases, and what merge rules need beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dynammo.adapters.conv import ConvAdapter
from dynammo.adapters.linear import LinearAdapter
from dynammo.merging import MERGE_RULES
from dynammo.merging.inputs import inputs_of
from dynammo.state import State


def conv_states(count: int, seed: int) -> list[State]:
    """The paper's adapters, with statistics as different as those of different diseases."""
    torch.manual_seed(seed)
    states = []
    for number in range(count):
        adapter = ConvAdapter(3)
        for name, buffer in adapter.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.1, 4)
            else:
                buffer.fill_(100 * number)
        states.append(adapter.state_dict())
    return states


def linear_states(count: int, seed: int, bias: bool = True) -> list[State]:
    """Linear adapters of one position, named as a network names them."""
    torch.manual_seed(seed)
    modules = [nn.ModuleDict({"at": LinearAdapter(3, bias)}) for _ in range(count)]
    for module in modules:
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    return [module.state_dict() for module in modules]


def states_for(rule: str, count: int, seed: int) -> list[State]:
    """Adapters that a rule can merge."""
    make = linear_states if "grams" in inputs_of(MERGE_RULES[rule]) else conv_states
    return make(count, seed)


def inputs_for(rule: str, states: list[State], seed: int) -> dict[str, Any]:
    """Every input that a rule asks for, different for every adapter."""
    torch.manual_seed(seed + 1)
    count = len(states)
    trained = [n for n in states[0] if "running" not in n and "batches" not in n]
    x = torch.randn(count, 20, 4, dtype=torch.float64)
    x[..., 3] = 1
    everything = {
        "samples": torch.randint(1, 500, (count,)).tolist(),
        "base": {n: torch.randn_like(v) if n in trained else v for n, v in states[0].items()},
        "seed": seed,
        "fisher": [{n: torch.rand_like(states[0][n]) for n in trained} for _ in states],
        "grams": [{"at.mix": sample.T @ sample / 20} for sample in x],
    }
    return {name: everything[name] for name in inputs_of(MERGE_RULES[rule])}


def reordered(inputs: dict[str, Any], order: list[int]) -> dict[str, Any]:
    """The inputs of adapters that arrive in another order."""
    return {
        name: [value[i] for i in order] if isinstance(value, list) else value
        for name, value in inputs.items()
    }


def assert_same(first: State, second: State, **tolerance: float) -> None:
    """The same tensors under the same names, but for the batch counter."""
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(first[name], second[name], **tolerance, msg=name)
