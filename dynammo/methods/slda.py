"""SLDA: linear discriminant analysis of a stream, one image at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from dynammo.config import Config
from dynammo.heads.discriminant import linear_discriminant
from dynammo.methods.analytic import LinearAnalytic
from dynammo.methods.base import About, Style, Task
from dynammo.state import State


class StreamingDiscriminant(LinearAnalytic):
    """With every image z of class y, t images having come before and n of its class,

        Sigma <- (t Sigma + t / (t + 1) (z - mu_y)(z - mu_y)^T) / (t + 1),
        mu_y <- mu_y + (z - mu_y) / (n + 1),

    mu_y being 0 before the first; then the linear discriminant of (1 - e) Sigma + e I. In batches
    the sum is the scatter around the class means, up to each class's first image and weights of
    n / (n + 1) instead of t / (t + 1).

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        shrinkage: e in (0, 1].
    """

    about = About(
        meaning="frozen backbone; streaming linear discriminant analysis of its features (SLDA)",
        source="arXiv 1909.01520",
        memory="none",
        style=Style("#56B4E9", "s"),
    )
    kept = ("means", "counts", "scatter", "weight", "bias")

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        shrinkage: float = 1e-4,
    ) -> None:
        super().__init__(config, weights, device)
        if not 0 < shrinkage <= 1:
            raise ValueError(f"shrinkage must be above 0 and at most 1, got {shrinkage}")
        self.shrinkage = shrinkage
        size = self.feature_size
        self.means = torch.zeros(0, size, dtype=torch.float64)
        self.counts = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(size, size, dtype=torch.float64)  # t Sigma

    def take(self, features: Tensor, task: Task) -> None:
        grown = task.classes - len(self.counts)
        self.means = torch.cat([self.means, self.means.new_zeros(grown, self.feature_size)])
        self.counts = torch.cat([self.counts, self.counts.new_zeros(grown)])
        before = self.counts.sum() + torch.arange(len(features))
        deviations = torch.empty_like(features)
        for place, label in enumerate(task.new.labels.tolist()):
            deviations[place] = features[place] - self.means[label]
            self.counts[label] += 1
            self.means[label] += deviations[place] / self.counts[label]
        weights = (before / (before + 1)).unsqueeze(1)
        self.scatter = self.scatter + deviations.T @ (weights * deviations)
        covariance = (1 - self.shrinkage) * self.scatter / self.counts.sum()
        covariance.diagonal().add_(self.shrinkage)
        self.use_head(linear_discriminant(self.means, covariance))
