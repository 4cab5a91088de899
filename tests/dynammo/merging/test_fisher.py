import pytest
import torch

from dynammo.merging.average import average
from dynammo.merging.fisher import fisher
from tests.dynammo.merging.states import assert_same, conv_states


def test_by_hand() -> None:
    states = [{"w": torch.tensor([0.0, 0.0, 0.0])}, {"w": torch.tensor([4.0, 4.0, 4.0])}]
    # Means 2 and 20: relative to them 0.5, 2.5, 0 and 1.5, 0, 1.5.
    information = [{"w": torch.tensor([1.0, 5.0, 0.0])}, {"w": torch.tensor([30.0, 0.0, 30.0])}]
    merged = fisher(states, fisher=information, floor=1e-9)["w"]
    assert merged.tolist() == pytest.approx([3, 0, 4], abs=1e-6)
    floored = fisher(states, fisher=information, floor=1)["w"]
    assert floored.tolist() == pytest.approx([4 * 2.5 / 4, 4 / 4.5, 4 * 2.5 / 3.5])


def test_the_same_information_everywhere_is_the_average() -> None:
    states = conv_states(3, seed=0)
    trained = [name for name in states[0] if "running" not in name and "batches" not in name]
    for value in (0.0, 1e-12, 5.0):
        information = [{name: torch.full_like(states[0][name], value) for name in trained}] * 3
        merged = fisher(states, fisher=information)
        assert_same(merged, average(states), rtol=1e-5, atol=1e-6)


def test_information_of_another_adapter_is_refused() -> None:
    states = [{"w": torch.zeros(2)}]
    with pytest.raises(ValueError, match="v is in one adapter only"):
        fisher(states, fisher=[{"v": torch.ones(2)}])
    with pytest.raises(ValueError, match="w: shape"):
        fisher(states, fisher=[{"w": torch.ones(3)}])
