import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynammo.merging.average import average
from dynammo.merging.ema import ema
from dynammo.merging.weighted import weighted
from dynammo.state import State
from tests.dynammo.merging.states import assert_same, conv_states


def pooled(states: list[State], shares: list[float]) -> State:
    """All adapters at once: means with weights p, variances about the common mean."""
    p = torch.tensor(shares, dtype=torch.float64)

    def mean(name: str) -> torch.Tensor:
        return torch.tensordot(p, torch.stack([s[name].double() for s in states]), 1)

    result = {}
    for name, value in states[0].items():
        expected = mean(name)
        if name.endswith("running_var"):
            own = name.replace("_var", "_mean")
            offsets = torch.stack([s[own].double() for s in states]) - mean(own)
            expected = expected + torch.tensordot(p, offsets.square(), 1)
        result[name] = expected.to(value.dtype)
    return result


@settings(max_examples=20)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.integers(0, 1000))
def test_weights_are_shares_of_all_images(samples: list[int], seed: int) -> None:
    states = conv_states(len(samples), seed)
    expected = pooled(states, [n / sum(samples) for n in samples])
    assert_same(weighted(iter(states), samples=samples), expected, rtol=1e-5, atol=1e-6)


def test_equal_numbers_are_the_average() -> None:
    states = conv_states(4, seed=0)
    assert_same(weighted(states, samples=[7] * 4), average(states), rtol=1e-6, atol=1e-7)


def test_an_adapter_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 training image, got 0"):
        weighted(conv_states(2, seed=0), samples=[3, 0])


@settings(max_examples=20)
@given(st.integers(1, 6), st.floats(0, 1), st.integers(0, 1000))
def test_older_adapters_fade(count: int, decay: float, seed: int) -> None:
    states = conv_states(count, seed)
    shares = [(1 - decay) * decay ** (count - t) for t in range(1, count + 1)]
    shares[0] = decay ** (count - 1)
    expected = pooled(states, shares)
    assert_same(ema(iter(states), decay=decay), expected, rtol=1e-5, atol=1e-6)


def test_the_ends_of_decay_are_the_newest_and_the_first() -> None:
    states = conv_states(3, seed=0)
    assert_same(ema(states, decay=0), states[2], rtol=1e-6, atol=1e-6)
    assert_same(ema(states, decay=1), states[0], rtol=1e-6, atol=1e-6)
    assert ema(states, decay=1)["down_norm.num_batches_tracked"] == 200
