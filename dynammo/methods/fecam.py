"""FeCAM: the class whose mean is nearest by a covariance of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from dynammo.config import Config
from dynammo.heads.linear import Scores
from dynammo.heads.scaling import power_normalise
from dynammo.methods.analytic import Analytic, of_classes
from dynammo.methods.base import About, Style, Task
from dynammo.methods.prototypes import similarity_scores
from dynammo.state import State


class ClassCovariances(Analytic):
    """argmin_c (x - mu_c)^T R_c^+ (x - mu_c), x and mu_c being raised to a power and then brought
    to unit length (`power_normalise`), and R_c the correlation matrix of the shrunk covariance of
    the class's features, raised to the same power,

        S_c + a mean(diag S_c) I + b mean(offdiag S_c) (1 - I).

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        power: Tukey's; 1 leaves the features as they are.
        alpha1: a.
        alpha2: b.
    """

    about = About(
        meaning="frozen backbone; the nearest mean by a covariance of each class (FeCAM)",
        source="arXiv 2309.14062",
        memory="none",
        style=Style("#009E73", "s"),
    )
    kept = ("means", "precisions")

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        power: float = 0.5,
        alpha1: float = 1.0,
        alpha2: float = 1.0,
    ) -> None:
        super().__init__(config, weights, device)
        if not 0 < power <= 1 or alpha1 < 0 or alpha2 < 0:
            raise ValueError("power must be above 0 and at most 1, alpha1 and alpha2 at least 0")
        self.power, self.alphas = power, (alpha1, alpha2)
        size = self.feature_size
        self.means = torch.zeros(0, size)
        self.precisions = torch.zeros(0, size, size)  # R_c^+

    def take(self, features: Tensor, task: Task) -> None:
        own = of_classes(features, task)
        means = torch.stack([x.mean(0) for x in own])
        raised = [x.sign() * x.abs().pow(self.power) for x in own]
        precisions = [correlations(x.T.cov(), *self.alphas) for x in raised]
        inverses = [torch.linalg.pinv(r, hermitian=True).float() for r in precisions]
        self.means = torch.cat([self.means, power_normalise(means, self.power).float()])
        self.precisions = torch.cat([self.precisions, torch.stack(inverses)])

    def distances(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)."""
        x = power_normalise(features, self.power)
        apart = [x - mean for mean in self.means]
        each = zip(apart, self.precisions, strict=True)
        return torch.stack([((a @ precision) * a).sum(1) for a, precision in each], dim=1)

    def scores(self, features: Tensor) -> Scores:
        return similarity_scores(-self.distances(features))

    @property
    def head_weights(self) -> int:
        return self.means.numel() + self.precisions.numel()


def correlations(covariance: Tensor, alpha1: float, alpha2: float) -> Tensor:
    """The shrunk covariance (D, D), divided by the standard deviations.

    Raises:
        ValueError: nothing varies.
    """
    size = len(covariance)
    diagonal = covariance.diagonal().mean()
    if not diagonal > 0:  # of a single image it is NaN
        raise ValueError("a covariance needs at least 2 different images of each class")
    rest = (covariance.sum() - covariance.trace()) / max(size * (size - 1), 1)
    shrunk = covariance + alpha2 * rest
    shrunk.diagonal().add_(alpha1 * diagonal - alpha2 * rest)
    deviations = shrunk.diagonal().sqrt()
    return shrunk / torch.outer(deviations, deviations)
