import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dynammo.adapters.linear import LinearAdapter
from dynammo.merging.average import average, running_average
from tests.dynammo.merging.states import conv_states


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


@settings(max_examples=25)
@given(st.integers(1, 7), st.integers(0, 1000))
def test_running_equals_batch(count: int, seed: int) -> None:
    states = conv_states(count, seed)
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


def test_a_running_average_starts_with_the_second() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        running_average({}, {}, 1)
