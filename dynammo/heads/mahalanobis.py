"""How far an image's features lie from the classes known: far from all is none of them."""

from __future__ import annotations

import torch
from torch import Tensor

from dynammo.heads.statistics import ClassStatistics, shrunk_covariance


def mahalanobis(features: Tensor, statistics: ClassStatistics, shrinkage: float) -> Tensor:
    """Squared Mahalanobis distance of each image to each class.

        d_c(x) = (x - mu_c)^T S^-1 (x - mu_c),    S = (1 - s) Sigma + s mean(diag(Sigma)) I

    The class statistics are kept anyway, so that no image is needed. The nearest class is the
    discriminant head's answer.

    Args:
        features: (N, D), as the head takes them.
        statistics: of C classes.
        shrinkage: s in (0, 1], the head's.

    Returns:
        (N, C) float64.

    Source: Lee et al. 2018 (arXiv 1807.03888).
    """
    images, means = _whitened(features, statistics, shrinkage)
    return torch.cdist(images, means, compute_mode="donot_use_mm_for_euclid_dist").square()


def residuals(features: Tensor, statistics: ClassStatistics, shrinkage: float) -> Tensor:
    """(N, D): from the nearest class's mean to each image, L^-1 (x - mu_c) with S = L L^T, whose
    squared length is the `mahalanobis` distance. Arguments as there.
    """
    images, means = _whitened(features, statistics, shrinkage)
    return images - means[torch.cdist(images, means).argmin(dim=1)]


def _whitened(
    features: Tensor, statistics: ClassStatistics, shrinkage: float
) -> tuple[Tensor, Tensor]:
    """L^-1 x of the images and of the means."""
    root = torch.linalg.cholesky(shrunk_covariance(statistics, shrinkage))
    images, means = (
        torch.linalg.solve_triangular(root, own.double().T, upper=False).T
        for own in (features, statistics.means)
    )
    return images, means
