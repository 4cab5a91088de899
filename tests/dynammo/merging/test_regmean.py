import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynammo.merging.average import average
from dynammo.merging.regmean import regmean
from dynammo.state import State
from tests.dynammo.merging.states import assert_same, linear_states


def gram(x: Tensor) -> State:
    return {"at.mix": x.T @ x / len(x)}


def joined(state: State) -> Tensor:
    weight = state["at.mix.weight"][:, :, 0, 0]
    bias = state.get("at.mix.bias")
    return (weight if bias is None else torch.cat([weight, bias[:, None]], 1)).double()


@pytest.mark.parametrize("bias", [True, False])
@settings(max_examples=15)
@given(count=st.integers(1, 4), seed=st.integers(0, 1000))
def test_it_is_the_least_squares_fit_to_all_adapters(bias: bool, count: int, seed: int) -> None:
    states = linear_states(count, seed, bias)
    inputs = torch.randn(count, 30, 3, dtype=torch.float64) + torch.randn(count, 1, 3)
    if bias:
        inputs = torch.cat([inputs, torch.ones(count, 30, 1)], dim=2)
    merged = regmean(iter(states), grams=map(gram, inputs), alpha=1)
    outputs = torch.cat([x @ joined(s).T for x, s in zip(inputs, states, strict=True)])
    expected = torch.linalg.lstsq(inputs.flatten(0, 1), outputs).solution.T
    torch.testing.assert_close(joined(merged), expected, rtol=1e-3, atol=1e-3)
    assert_same(merged, {name: merged[name] for name in states[0]}, rtol=0, atol=0)


def test_alpha_0_weights_every_column_by_its_inputs_mean_square() -> None:
    states = linear_states(2, seed=0, bias=False)
    squares = torch.tensor([[1.0, 3.0, 2.0], [3.0, 1.0, 2.0]], dtype=torch.float64)
    grams = [{"at.mix": torch.full((3, 3), 0.5) + torch.diag(s - 0.5)} for s in squares]
    merged = joined(regmean(states, grams=grams, alpha=0))
    expected = sum(joined(s) * q for s, q in zip(states, squares, strict=True)) / squares.sum(0)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=15)
@given(st.integers(0, 1000))
def test_inputs_that_never_occur_are_averaged(seed: int) -> None:
    states = linear_states(3, seed, bias=False)
    x = torch.randn(3, 20, 3, dtype=torch.float64)
    x[:, :, 1] = 0
    merged = regmean(states, grams=map(gram, x))
    expected = joined(average(states))[:, 1]
    torch.testing.assert_close(joined(merged)[:, 1], expected, rtol=1e-5, atol=1e-6)
    nothing = regmean(states, grams=map(gram, 0 * x))
    assert_same(nothing, average(states), rtol=1e-5, atol=1e-6)


def test_equal_inputs_are_the_average() -> None:
    states = linear_states(3, seed=0)
    x = torch.cat([torch.randn(50, 3), torch.ones(50, 1)], 1)
    assert_same(regmean(states, grams=[gram(x)] * 3), average(states), rtol=1e-4, atol=1e-5)


def test_what_is_no_linear_map_is_refused() -> None:
    (state,) = linear_states(1, seed=0)
    x = gram(torch.ones(5, 4))
    with pytest.raises(ValueError, match=r"not part of a linear map: at\.norm\.weight"):
        regmean([{**state, "at.norm.weight": torch.ones(3)}], grams=[x])
