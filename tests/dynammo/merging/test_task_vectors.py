"""Task arithmetic, TIES, DARE and MagMax on numbers worked out by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynammo.merging.average import average
from dynammo.merging.dare import dare
from dynammo.merging.magmax import magmax
from dynammo.merging.task_vectors import task_arithmetic
from dynammo.merging.ties import ties, trim
from dynammo.state import State
from tests.dynammo.merging.states import assert_same, conv_states

BASE = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0])}


def moved(*changes: list[float]) -> list[State]:
    return [{"w": BASE["w"] + torch.tensor(change)} for change in changes]


def change(merged: State) -> list[float]:
    found: list[float] = (merged["w"] - BASE["w"]).tolist()
    return found


def test_changes_are_added() -> None:
    states = moved([1, 0, -2, 4], [3, 0, 2, -1])
    assert change(task_arithmetic(states, base=BASE)) == [4, 0, 0, 3]
    assert change(task_arithmetic(states, base=BASE, scale=0.5)) == [2, 0, 0, 1.5]
    assert change(task_arithmetic(states, base=BASE, scale=0)) == [0, 0, 0, 0]


def test_equal_changes_add_up() -> None:
    (state,) = moved([1, 0, -2, 4])
    assert change(task_arithmetic([state] * 3, base=BASE)) == [3, 0, -6, 12]


@settings(max_examples=15)
@given(st.integers(1, 6), st.integers(0, 1000))
def test_a_scale_of_one_nth_is_the_average(count: int, seed: int) -> None:
    *states, base = conv_states(count + 1, seed)
    merged = task_arithmetic(iter(states), base=base, scale=1 / count)
    assert_same(merged, average(states), rtol=1e-5, atol=1e-6)


def test_ties_trims_elects_and_averages_what_agrees() -> None:
    # Kept: two of four numbers each. First: -8, 6. Second: 4, 5. Third: 7, 2.
    states = moved([-8, 0.5, 1, 6], [4, 1, 0, 5], [7, 0.5, -1, 2])
    # -8 + 4 + 7 > 0: the mean of 4 and 7. Nothing is left of the middle. The mean of 6, 5, 2.
    merged = change(ties(states, base=BASE, keep=0.5))
    assert merged == pytest.approx([5.5, 0, 0, 13 / 3])
    assert change(ties(states, base=BASE, keep=0.5, scale=2)) == pytest.approx([11, 0, 0, 26 / 3])


def test_ties_of_opposite_changes_that_cancel_changes_nothing() -> None:
    states = moved([3, -3, 0, 1], [-3, 3, 0, 1])
    assert change(ties(states, base=BASE, keep=1)) == [0, 0, 0, 1]


def test_ties_trims_an_adapter_on_its_own() -> None:
    (state,) = moved([1, -4, 2, 3])
    assert change(ties([state], base=BASE, keep=0.25)) == [0, -4, 0, 0]
    assert change(ties([state], base=BASE, keep=0)) == [0, 0, 0, 0]


@settings(max_examples=25)
@given(st.integers(0, 30), st.integers(0, 1000))
def test_trimming_keeps_the_largest_of_all_tensors_together(count: int, seed: int) -> None:
    torch.manual_seed(seed)
    vector = {"a": torch.randn(7, 3), "b": 3 * torch.randn(9)}
    trimmed = torch.cat([v.flatten() for v in trim(vector, count / 30).values()])
    flat = torch.cat([v.flatten() for v in vector.values()])
    kept = trimmed != 0
    assert torch.equal(trimmed[kept], flat[kept])
    assert count <= kept.sum() <= count + 1  # one more where count / 30 is rounded up
    if 0 < kept.sum() < 30:
        assert flat[kept].abs().min() > flat[~kept].abs().max()


def test_magmax_takes_the_largest_change() -> None:
    states = moved([1, -5, 0, 2], [-3, 4, 0, -2], [2, 1, 0, 1])
    assert change(magmax(states, base=BASE)) == [-3, -5, 0, 2]
    assert change(magmax(states[::-1], base=BASE)) == [-3, -5, 0, 2]  # of 2 and -2 always 2
    assert change(magmax(states, base=BASE, scale=0.5)) == [-1.5, -2.5, 0, 1]


def test_dare_without_dropping_is_the_average() -> None:
    *states, base = conv_states(4, seed=0)
    assert_same(dare(states, base=base, seed=1, drop=0), average(states), rtol=1e-5, atol=1e-6)


def test_dare_drops_and_rescales() -> None:
    base = {"w": torch.zeros(20_000)}
    merged = dare([{"w": torch.ones(20_000)}], base=base, seed=1, drop=0.8)["w"]
    assert set(merged.tolist()) == {0.0, 5.0}
    assert merged.mean().item() == pytest.approx(1, abs=0.07)  # five standard deviations


def test_dare_gives_every_adapter_a_mask_of_its_own_that_stays() -> None:
    base, one = {"w": torch.zeros(1000)}, {"w": torch.ones(1000)}

    def merged(count: int, seed: int = 1) -> torch.Tensor:
        return count * dare([one] * count, base=base, seed=seed)["w"]

    assert torch.equal(merged(2), merged(2))
    assert not torch.equal(merged(2), merged(2, seed=2))
    second = merged(2) - merged(1)  # what the second adapter adds: 0 or 2, by a mask of its own
    assert set(second.tolist()) == {0.0, 2.0}
    assert not torch.equal(second, merged(1))
