"""What holds of every merge rule, and what does not hold of some."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynammo.merging import MERGE_RULES
from dynammo.merging.average import average
from dynammo.merging.blend import is_statistic
from tests.dynammo.merging.states import (
    State,
    assert_same,
    conv_states,
    inputs_for,
    reordered,
    states_for,
)

# What holds of some rules only is tried with those named; a new one need not be among them.
# One adapter, or equal ones, merge to what they are; with these options where a rule would throw
# something away.
LOSSLESS: dict[str, dict[str, Any]] = {
    "average": {},
    "dare": {"drop": 0.0},
    "ema": {},
    "fisher": {},
    "last": {},
    "magmax": {},
    "regmean": {},
    "task_arithmetic": {},
    "ties": {"keep": 1.0},
    "weighted": {},
}
SYMMETRIC = ["average", "fisher", "magmax", "regmean", "task_arithmetic", "ties", "weighted"]
ORDERED = ["dare", "ema", "last"]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def merge(rule: str, states: list[State], inputs: dict[str, Any], **options: Any) -> State:
    merged: State = MERGE_RULES[rule](iter(states), **inputs, **options)
    return merged


@pytest.mark.parametrize("rule", LOSSLESS)
@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_one_adapter_merges_to_itself(rule: str, seed: int) -> None:
    states = states_for(rule, 1, seed)
    merged = merge(rule, states, inputs_for(rule, states, seed), **LOSSLESS[rule])
    assert_same(merged, states[0], **CLOSE)


@pytest.mark.parametrize("rule", [r for r in LOSSLESS if r != "task_arithmetic"])
@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_equal_adapters_merge_to_themselves(rule: str, seed: int) -> None:
    states = 3 * states_for(rule, 1, seed)
    merged = merge(rule, states, inputs_for(rule, states, seed), **LOSSLESS[rule])
    assert_same(merged, states[0], **CLOSE)


@pytest.mark.parametrize("rule", SYMMETRIC)
@settings(max_examples=5)
@given(order=st.permutations(range(4)), seed=st.integers(0, 1000))
def test_the_order_does_not_matter(rule: str, order: list[int], seed: int) -> None:
    states = states_for(rule, 4, seed)
    inputs = inputs_for(rule, states, seed)
    shuffled = merge(rule, [states[i] for i in order], reordered(inputs, order))
    assert_same(merge(rule, states, inputs), shuffled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ORDERED)
def test_the_order_matters(rule: str) -> None:
    states = states_for(rule, 3, seed=0)
    inputs = inputs_for(rule, states, seed=0)
    backwards = merge(rule, states[::-1], reordered(inputs, [2, 1, 0]))
    assert (
        merge(rule, states, inputs)["down.weight"] - backwards["down.weight"]
    ).abs().max() > 0.01


def test_the_newest_adapter_alone() -> None:
    states = conv_states(3, seed=4)
    assert_same(merge("last", states, {}), states[-1], rtol=0, atol=0)


@pytest.mark.parametrize("rule", ["task_arithmetic", "ties", "dare", "magmax", "fisher"])
def test_batch_norm_is_merged_as_the_average_does(rule: str) -> None:
    states = conv_states(3, seed=1)
    merged, expected = merge(rule, states, inputs_for(rule, states, seed=1)), average(states)
    buffers = [name for name in expected if is_statistic(name)]
    assert len(buffers) == 6
    for name in buffers:
        assert torch.equal(merged[name], expected[name]), name
    assert not torch.equal(merged["down.weight"], expected["down.weight"])


@pytest.mark.parametrize("rule", MERGE_RULES)
def test_inputs_are_left_as_they_were(rule: str) -> None:
    states = states_for(rule, 3, seed=2)
    inputs = inputs_for(rule, states, seed=2)
    before = [{k: v.clone() for k, v in state.items()} for state in states]
    base = {k: v.clone() for k, v in inputs.get("base", {}).items()}
    first = merge(rule, states, inputs)
    for state, copy in zip(states, before, strict=True):
        assert_same(state, copy, rtol=0, atol=0)
    assert_same(inputs.get("base", {}), base, rtol=0, atol=0)
    assert_same(merge(rule, states, inputs), first, rtol=0, atol=0)


@pytest.mark.parametrize("rule", MERGE_RULES)
def test_nothing_to_merge(rule: str) -> None:
    inputs = reordered(inputs_for(rule, states_for(rule, 1, seed=0), seed=0), [])
    with pytest.raises(ValueError, match="no adapter"):
        merge(rule, [], inputs)


@pytest.mark.parametrize("rule", MERGE_RULES)
def test_adapters_that_do_not_fit_together_are_refused(rule: str) -> None:
    states = states_for(rule, 2, seed=0)
    name = next(name for name, value in states[0].items() if value.dim())
    inputs = inputs_for(rule, states, seed=0)
    states[1][name] = states[1][name][:1]
    with pytest.raises(ValueError, match=f"{name}: shape"):
        merge(rule, states, inputs)


@pytest.mark.parametrize("rule", ["weighted", "fisher", "regmean"])
def test_an_input_for_every_adapter(rule: str) -> None:
    states = states_for(rule, 3, seed=0)
    inputs = reordered(inputs_for(rule, states, seed=0), [0, 1])
    with pytest.raises(ValueError, match="argument"):
        merge(rule, states, inputs)


@pytest.mark.parametrize(
    ("rule", "option", "value"),
    [
        ("ema", "decay", 1.5),
        ("ema", "decay", "half"),
        ("ema", "decay", True),
        ("task_arithmetic", "scale", -1),
        ("task_arithmetic", "scale", float("nan")),
        ("ties", "keep", 20),
        ("ties", "scale", -1),
        ("dare", "drop", 1),
        ("dare", "scale", None),
        ("magmax", "scale", float("inf")),
        ("fisher", "floor", 0),
        ("regmean", "alpha", 1.1),
    ],
)
def test_an_option_out_of_range_is_named(rule: str, option: str, value: Any) -> None:
    states = states_for(rule, 1, seed=0)
    with pytest.raises(ValueError, match=f"{option} must be a number, at least .*, got {value!r}"):
        merge(rule, states, inputs_for(rule, states, seed=0), **{option: value})


def streams(rule: str) -> bool:
    return getattr(import_module(MERGE_RULES.module(rule)), "STREAMS", True)


@pytest.mark.parametrize("rule", [rule for rule in MERGE_RULES if streams(rule)])
def test_one_adapter_is_held_at_a_time(rule: str) -> None:
    """An adapter is given only after the rule has done with the one before."""
    states = states_for(rule, 4, seed=3)
    inputs = inputs_for(rule, states, seed=3)
    expected = merge(rule, states, inputs)

    def stream() -> Iterator[State]:
        for state in states:
            own = {name: value.clone() for name, value in state.items()}
            yield own
            if state is not states[0]:  # the first may be kept as the start of a running value
                for value in own.values():
                    value.zero_()

    assert_same(MERGE_RULES[rule](stream(), **inputs), expected, rtol=0, atol=0)
