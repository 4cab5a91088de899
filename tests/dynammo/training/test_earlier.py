"""What an adapter goes by instead of the old images."""

from __future__ import annotations

import torch

from dynammo.training.earlier import GaussianReplay, feature_distance


def test_drawn_features_have_the_mean_and_covariance_of_the_classes() -> None:
    means = torch.tensor([[1.0, -2.0], [4.0, 0.0]], dtype=torch.float64)
    covariance = torch.tensor([[2.0, 1.2], [1.2, 1.0]], dtype=torch.float64)
    drawn, owner = GaussianReplay(means, covariance).draw(40_000, torch.Generator().manual_seed(0))
    # Of all classes together: the covariance of each, and that of the means, which weigh the same.
    between = torch.cov(means.T, correction=0)
    assert torch.allclose(drawn.mean(0).double(), means.mean(0), atol=0.05)
    assert torch.allclose(torch.cov(drawn.T).double(), covariance + between, atol=0.1)
    again, _ = GaussianReplay(means, covariance).draw(40_000, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    assert torch.allclose(drawn[owner == 1].mean(0).double(), means[1], atol=0.05)


def test_a_covariance_of_few_samples_can_be_drawn_from() -> None:
    x = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for covariance in (torch.cov(x.T), torch.zeros(50, 50, dtype=torch.float64)):
        drawn, _ = GaussianReplay(x[:1], covariance).draw(8, torch.Generator().manual_seed(0))
        assert drawn.isfinite().all()
    assert torch.allclose(drawn, x[:1].float().expand(8, -1), atol=1e-6)  # no spread: the mean


def test_features_are_held_by_direction_alone() -> None:
    before = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert float(feature_distance(3 * before, before)) == 0
    # At right angles the squared distance of unit vectors is 2: times D, of one image of two.
    now = torch.tensor([[0.0, 5.0], [0.0, 2.0]])
    assert float(feature_distance(now, before)) == 2.0
