import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from dynammo.config import MemoryConfig
from dynammo.errors import ConfigError
from dynammo.memory.herding import herd, quota


@st.composite
def features(draw: st.DrawFn) -> Tensor:
    """(N, D): small integers, so that equal and zero rows occur, or real numbers."""
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 5)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    if draw(st.booleans()):
        return torch.randint(-1, 2, shape, generator=generator).float()
    return torch.randn(shape, generator=generator)


def test_quota() -> None:
    assert quota(MemoryConfig(size=40), 3) == 13  # 40 // 3
    assert quota(MemoryConfig(size=40), 40) == 1
    assert quota(MemoryConfig(per_class=5), 1000) == 5


@given(st.integers(1, 500), st.integers(1, 500))
def test_the_memory_is_never_exceeded_and_never_short_of_a_whole_round(
    size: int, classes: int
) -> None:
    if size < classes:
        with pytest.raises(ConfigError):
            quota(MemoryConfig(size=size), classes)
        return
    kept = quota(MemoryConfig(size=size), classes)
    assert kept >= 1
    assert kept * classes <= size < (kept + 1) * classes


def test_a_memory_without_room_for_every_class_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"memory\.size 3 cannot hold .* each of 4 classes"):
        quota(MemoryConfig(size=3), 4)


def test_herding_by_hand() -> None:
    # Unit features a = (1, 0), b = (0, 1), c = (0.6, 0.8); their mean is (0.533, 0.6). Squared
    # distances to it, first choice: a 0.578, b 0.444, c 0.044. Second, of the mean with c:
    # (a + c) / 2 = (0.8, 0.4) 0.111, (b + c) / 2 = (0.3, 0.9) 0.144. So c, a, b.
    # Ranking by distance would give c, b, a; without normalising, b would come second as well.
    assert herd(torch.tensor([[1.0, 0.0], [0.0, 10.0], [3.0, 4.0]]), 3) == [2, 0, 1]


def test_equal_features_are_taken_in_order() -> None:
    assert herd(torch.ones(5, 7), 5) == [0, 1, 2, 3, 4]


def test_no_images_or_none_wanted() -> None:
    assert herd(torch.zeros(0, 4), 3) == []
    assert herd(torch.ones(3, 4), 0) == []


@settings(max_examples=60)
@given(features(), st.integers(0, 15))
def test_indices_are_distinct_and_as_many_as_there_are(rows: Tensor, count: int) -> None:
    chosen = herd(rows, count)
    assert len(chosen) == min(count, len(rows))
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(range(len(rows)))


@settings(max_examples=40)
@given(features(), st.integers(0, 11))
def test_fewer_are_a_prefix_of_more(rows: Tensor, count: int) -> None:
    assert herd(rows, count) == herd(rows, count + 1)[:count]


@settings(max_examples=60)
@given(features())
def test_every_choice_keeps_the_mean_closest(rows: Tensor) -> None:
    """The first is the image nearest to the mean of the normalised features."""
    unit = normalize(rows.double(), dim=1)
    chosen = herd(rows, len(rows))
    for k in range(len(chosen)):
        free = [i for i in range(len(rows)) if i not in chosen[:k]]
        gaps = {i: (unit.mean(0) - unit[[*chosen[:k], i]].mean(0)).norm().item() for i in free}
        assert gaps[chosen[k]] == pytest.approx(min(gaps.values()), abs=1e-9)


@settings(max_examples=40)
@given(features(), st.data())
def test_the_length_of_a_feature_does_not_matter(rows: Tensor, data: st.DataObject) -> None:
    powers = st.lists(st.integers(-8, 8), min_size=len(rows), max_size=len(rows))
    scale = 2.0 ** torch.tensor(data.draw(powers))  # powers of two: no rounding
    assert herd(rows * scale[:, None], len(rows)) == herd(rows, len(rows))
