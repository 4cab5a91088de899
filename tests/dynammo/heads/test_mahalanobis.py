"""Distances to the classes: against SciPy's, and against the head made of the same statistics."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.distance import cdist

from dynammo.heads.discriminant import linear_discriminant
from dynammo.heads.linear import unified_scores
from dynammo.heads.mahalanobis import mahalanobis
from dynammo.heads.statistics import measure_classes, shrunk_covariance

RANDOM = torch.Generator().manual_seed(0)
LABELS = torch.arange(30) % 3
FEATURES = torch.randn(1, 30, 5, generator=RANDOM) + 2 * torch.eye(5)[LABELS]
STATISTICS = measure_classes(FEATURES, LABELS, 3)


def test_it_is_scipys() -> None:
    shrunk = (
        0.7 * STATISTICS.covariance + 0.3 * STATISTICS.covariance.diagonal().mean() * torch.eye(5)
    )
    inverse = np.linalg.inv(shrunk.numpy())
    expected = cdist(
        FEATURES[0].double().numpy(), STATISTICS.means.numpy(), "mahalanobis", VI=inverse
    )
    np.testing.assert_allclose(mahalanobis(FEATURES[0], STATISTICS, 0.3), expected**2)


def test_the_nearest_class_is_the_heads_answer() -> None:
    """Whose means are those of the images."""
    head = linear_discriminant(STATISTICS.means, shrunk_covariance(STATISTICS, 0.3))
    predicted = unified_scores(FEATURES[0], head).predicted
    assert torch.equal(mahalanobis(FEATURES[0], STATISTICS, 0.3).argmin(1), predicted)
