"""The head that follows from class statistics: no training, and no image remembered."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from dynammo.config import HeadConfig
from dynammo.head_rules.base import Evidence, State
from dynammo.statistics import ClassStatistics


class Discriminant:
    """Shrunk linear discriminant analysis of the class statistics, see `discriminant_head`."""

    evidence: ClassVar[Literal["exemplars", "statistics"]] = "statistics"

    def __call__(self, evidence: Evidence, config: HeadConfig) -> State:
        """The head.

        Raises:
            ValueError: no statistics.
        """
        if evidence.statistics is None:
            raise ValueError("the discriminant needs class statistics")
        return discriminant_head(evidence.statistics, config.shrinkage)


def discriminant_head(statistics: ClassStatistics, shrinkage: float) -> State:
    """Linear discriminant analysis with equal priors, as a head.

    With the shrunk covariance S = (1 - s) Sigma + s mean(diag(Sigma)) I,

        w_c = S^-1 mu_c,    b_c = -1/2 mu_c^T S^-1 mu_c,

    which is Bayes' rule for classes that are normal with a common covariance and equally frequent.

    Args:
        statistics: of C classes, D features.
        shrinkage: s in (0, 1].

    Returns:
        `weight` (C, D) and `bias` (C,), float32.

    Source: Friedman 1989, regularised discriminant analysis.
    """
    covariance = statistics.covariance
    identity = torch.eye(len(covariance), dtype=torch.float64)
    # Without any spread (a sample a class) the nearest mean wins, whatever the scale.
    variance = covariance.diagonal().mean()
    variance = torch.where(variance > 0, variance, torch.ones_like(variance))
    shrunk = (1 - shrinkage) * covariance + shrinkage * variance * identity
    weight = torch.linalg.solve(shrunk, statistics.means.T).T
    bias = -0.5 * (weight * statistics.means).sum(1)
    return {"weight": weight.float(), "bias": bias.float()}
