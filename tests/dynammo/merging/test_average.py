from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynammo.adapters.conv import ConvAdapter
from dynammo.adapters.linear import LinearAdapter
from dynammo.merging import MERGE_RULES
from dynammo.merging.average import average, running_average

State = dict[str, Tensor]


def adapters(count: int, seed: int) -> list[State]:
    """Adapters with statistics as different as those of different diseases."""
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


def assert_same(first: State, second: State, **tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], **(tolerance or {}), msg=name)


def test_by_hand() -> None:
    first = {
        "weight": torch.tensor([1.0, 4.0]),
        "norm.running_mean": torch.tensor([0.0]),
        "norm.running_var": torch.tensor([1.0]),
        "norm.num_batches_tracked": torch.tensor(10),
    }
    second = {
        "weight": torch.tensor([3.0, 0.0]),
        "norm.running_mean": torch.tensor([4.0]),
        "norm.running_var": torch.tensor([3.0]),
        "norm.num_batches_tracked": torch.tensor(7),
    }
    merged = average([first, second])
    assert merged["weight"].tolist() == [2.0, 2.0]
    assert merged["norm.running_mean"].tolist() == [2.0]
    # mean(var) = 2, var(mean) = mean of (0 - 2)^2 and (4 - 2)^2 = 4: pooled 6.
    assert merged["norm.running_var"].tolist() == [6.0]
    assert merged["norm.num_batches_tracked"].item() == 7  # a counter, not averaged
    assert merged["norm.num_batches_tracked"].dtype == torch.int64


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(0, 1000))
def test_running_equals_batch(count: int, seed: int) -> None:
    states = adapters(count, seed)
    merged = average(states)
    for name, value in merged.items():
        stack = torch.stack([state[name].double() for state in states])
        if name.endswith("num_batches_tracked"):
            continue
        expected = stack.mean(0)
        if name.endswith("running_var"):
            means = torch.stack([s[name.replace("_var", "_mean")].double() for s in states])
            expected = expected + means.var(0, unbiased=False)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 1000))
def test_order_does_not_matter(order: list[int], seed: int) -> None:
    states = adapters(4, seed)
    merged, shuffled = average(states), average([states[i] for i in order])
    for state in (merged, shuffled):
        for name in [n for n in state if n.endswith("num_batches_tracked")]:
            del state[name]
    assert_same(merged, shuffled, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", MERGE_RULES)
def test_one_adapter_merges_to_itself(rule: str) -> None:
    (state,) = adapters(1, seed=0)
    assert_same(MERGE_RULES[rule]([state]), state, rtol=0, atol=0)


@pytest.mark.parametrize("rule", MERGE_RULES)
def test_equal_adapters_merge_to_themselves(rule: str) -> None:
    (state,) = adapters(1, seed=0)
    assert_same(MERGE_RULES[rule]([state, state, state]), state, rtol=1e-6, atol=1e-7)


def test_one_adapter_is_held_at_a_time() -> None:
    alive = 0

    def stream() -> Iterator[State]:
        nonlocal alive
        for state in adapters(5, seed=1):
            alive += 1
            yield state

    assert_same(average(stream()), average(adapters(5, seed=1)), rtol=0, atol=0)
    assert alive == 5


def test_inputs_are_left_as_they_were() -> None:
    states = adapters(3, seed=2)
    before = [{k: v.clone() for k, v in state.items()} for state in states]
    average(states)
    for state, copy in zip(states, before, strict=True):
        assert_same(state, copy, rtol=0, atol=0)


def test_linear_adapters_merge_to_the_mean_of_their_outputs() -> None:
    modules = [LinearAdapter(3) for _ in range(4)]
    for module in modules:
        nn.init.normal_(module.mix.weight)
    merged = LinearAdapter(3)
    merged.load_state_dict(average([module.state_dict() for module in modules]))
    x = torch.randn(2, 3, 5, 5)
    expected = torch.stack([module(x) for module in modules]).mean(0)
    torch.testing.assert_close(merged(x), expected)


def test_all_differences_of_layout_are_listed() -> None:
    with pytest.raises(ValueError, match=r"bias is in one adapter only; .*weight: shape \(2,\) ag"):
        running_average(
            {"weight": torch.ones(2), "bias": torch.ones(1)}, {"weight": torch.ones(3)}, 2
        )


def test_nothing_to_merge() -> None:
    with pytest.raises(ValueError, match="no adapter"):
        average([])
    with pytest.raises(ValueError, match="at least 2"):
        running_average({}, {}, 1)
