import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynammo.heads.statistics import (
    ClassStatistics,
    Pooling,
    add_samples,
    append_classes,
    drop_classes,
    measure_classes,
    pack,
    remove_samples,
    unpack,
)
from tests.dynammo.heads.samples import samples

POOLINGS = st.sampled_from(["samples", "classes"])


def test_means_and_scatter_by_hand() -> None:
    features = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [5.0, 5.0]]])
    result = measure_classes(features, torch.tensor([0, 0, 1]), 2)
    assert result.means.tolist() == [[1.0, 0.0], [5.0, 5.0]]
    # Class 0 deviates by -1 and +1 along the first axis, class 1 not at all.
    assert result.scatter.tolist() == [[2.0, 0.0], [0.0, 0.0]]
    assert result.counts.tolist() == [2.0, 1.0]
    assert result.covariance[0, 0] == pytest.approx(2 / 3)
    each = measure_classes(features, torch.tensor([0, 0, 1]), 2, "classes")
    assert each.scatter.tolist() == [[[2.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]
    assert each.covariance.tolist() == [[0.5, 0.0], [0.0, 0.0]]  # of 1 and of 0, either the same
    assert torch.equal(each.pooled("samples").scatter, result.scatter)
    with pytest.raises(ValueError, match="scatter of each class is not known"):
        result.pooled("classes")


@pytest.mark.parametrize("pooling", ["samples", "classes"])
def test_what_is_stored_is_what_comes_back(pooling: Pooling) -> None:
    features, labels = samples()
    known = measure_classes(features, labels, 3, pooling)
    for one, other in zip(known, ClassStatistics.of(known.state()), strict=True):
        assert torch.equal(one, other)
    if pooling == "classes":
        packed = pack(known)
        assert packed["scatter"].dtype == torch.float32
        for one, other in zip(known, unpack(packed), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_every_view_counts_as_a_sample() -> None:
    features, labels = samples()
    twice = measure_classes(torch.cat([features, features + 1]), labels, 3)
    flat = measure_classes(
        torch.cat([features[0], features[0] + 1]).unsqueeze(0), labels.repeat(2), 3
    )
    for one, other in zip(twice, flat, strict=True):
        torch.testing.assert_close(one, other)


def test_a_class_without_samples_is_named() -> None:
    with pytest.raises(ValueError, match=r"classes \[1\]"):
        measure_classes(torch.zeros(1, 2, 3), torch.tensor([0, 2]), 3)


def test_scatters_of_the_classes_add_up_to_that_of_all() -> None:
    features, labels = samples()
    each, together = (measure_classes(features, labels, 3, p) for p in ("classes", "samples"))
    for one, other in zip(each.pooled("samples"), together, strict=True):
        torch.testing.assert_close(one, other)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 4), POOLINGS)
def test_classes_measured_apart_or_together_are_the_same(
    seed: int, first: int, pooling: Pooling
) -> None:
    features, labels = samples(classes=5, seed=seed)
    together = measure_classes(features, labels, 5, pooling)
    old, new = labels < first, labels >= first
    apart = append_classes(
        measure_classes(features[:, old], labels[old], first, pooling),
        measure_classes(features[:, new], labels[new] - first, 5 - first, pooling),
    )
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.booleans(), POOLINGS)
def test_adding_samples_is_measuring_all_and_removing_undoes_it(
    seed: int, known: bool, pooling: Pooling
) -> None:
    features, labels = samples(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    late = torch.rand(len(labels), generator=generator) < 0.5
    for label in range(3):  # both parts have every class that they are to have
        late[(labels == label).nonzero().flatten()[:2]] = torch.tensor([False, True])
    if not known:
        late[labels == 2], late[labels == 0] = True, False
    old = measure_classes(features[:, ~late], labels[~late], 3 if known else 2, pooling)
    owner = labels[late].unique().tolist()
    new = measure_classes(
        features[:, late],
        torch.searchsorted(torch.tensor(owner), labels[late]),
        len(owner),
        pooling,
    )
    together = add_samples(old, new, owner)
    expected = measure_classes(features, labels, 3, pooling)
    for one, other in zip(together, expected, strict=True):
        torch.testing.assert_close(one, other)
    left = drop_classes(remove_samples(together, new, owner), range(len(old.means)))
    for one, other in zip(left, old, strict=True):
        torch.testing.assert_close(one, other)


def test_more_samples_than_there_are_cannot_be_removed() -> None:
    features, labels = samples()
    whole = measure_classes(features, labels, 3)
    few = measure_classes(features[:, :-1], labels[:-1], 3)
    with pytest.raises(ValueError, match="class 0 has"):
        remove_samples(few, add_samples(whole, whole, [0, 1, 2]), [0, 1, 2])
