import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynammo.heads.drift import measure_drift
from dynammo.heads.statistics import ClassStatistics, Pooling, measure_classes
from tests.dynammo.heads.samples import samples


def correct_drift(
    statistics: ClassStatistics, before: Tensor, after: Tensor, ridge: float
) -> ClassStatistics:
    return measure_drift(before, after, ridge).statistics(statistics)


def test_features_that_did_not_change_change_no_statistics() -> None:
    features, labels = samples()
    before = measure_classes(features, labels, 3)
    after = correct_drift(before, features[0], features[0], ridge=0.1)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from(["samples", "classes"]))
def test_an_affine_change_is_followed_exactly(seed: int, pooling: Pooling) -> None:
    """What the images at hand show of it holds for classes that are not among them."""
    generator = torch.Generator().manual_seed(seed)
    change = torch.eye(4) + 0.3 * torch.randn(4, 4, generator=generator)
    shift = torch.randn(4, generator=generator)
    features, labels = samples(seed=seed)
    probes = torch.randn(50, 4, generator=generator)
    corrected = correct_drift(
        measure_classes(features, labels, 3, pooling), probes, probes @ change + shift, ridge=1e-9
    )
    expected = measure_classes(features @ change + shift, labels, 3, pooling)
    for one, other in zip(corrected, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_large_ridge_leaves_the_common_shift_alone() -> None:
    features, labels = samples()
    before = measure_classes(features, labels, 3)
    after = correct_drift(before, features[0], 2 * features[0], ridge=1e9)
    shift = features[0].double().mean(0)
    torch.testing.assert_close(after.means, before.means + shift, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(after.scatter, before.scatter, rtol=1e-6, atol=1e-6)


def test_identical_images_tell_a_shift() -> None:
    """Without any spread there is no slope to be found, and nothing to divide by."""
    before = ClassStatistics(torch.ones(1, 2).double(), torch.eye(2).double(), torch.ones(1))
    for count in (1, 3):
        was, now = torch.ones(count, 2), torch.full((count, 2), 4.0)
        assert correct_drift(before, was, now, ridge=0.1).means.tolist() == [[4.0, 4.0]]


@pytest.mark.parametrize(("before", "after"), [(6, 5), (0, 0)])
def test_features_of_other_images_or_of_none_are_refused(before: int, after: int) -> None:
    features, _ = samples()
    with pytest.raises(ValueError, match="same images"):
        measure_drift(features[0][:before], features[0][:after], 0.1)
