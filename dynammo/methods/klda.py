"""KLDA: linear discriminant analysis of random Fourier features."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynammo.config import Config
from dynammo.heads.discriminant import linear_discriminant
from dynammo.heads.linear import Scores
from dynammo.heads.statistics import ClassStatistics, append_classes, measure_classes
from dynammo.methods.analytic import LinearAnalytic
from dynammo.methods.base import About, Style, Task
from dynammo.state import State


class KernelDiscriminant(LinearAnalytic):
    """z = sqrt(2 / M) cos(x W + b) with W ~ sqrt(2 gamma) N(0, 1) and b ~ U(0, 2 pi), drawn once,
    whose products are about exp(-gamma |x - x'|^2); then the linear discriminant of z with the
    classes' pooled covariance + ridge I.

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        projection: M. The paper takes 5000; the scatter has M^2 numbers.
        gamma: of the kernel. The paper takes 1e-4 to 1e-2, by the backbone.
        ridge: above 0.
    """

    about = About(
        meaning="frozen backbone; discriminant analysis of random Fourier features (KLDA)",
        source="arXiv 2412.15571",
        memory="none",
        style=Style("#009E73", "D"),
    )
    kept = ("means", "scatter", "counts", "weight", "bias")

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        projection: int = 2000,
        gamma: float = 1e-4,
        ridge: float = 1e-5,
    ) -> None:
        super().__init__(config, weights, device)
        if projection < 1 or gamma <= 0 or ridge <= 0:
            raise ValueError("projection must be at least 1, and gamma and ridge above 0")
        self.ridge = ridge
        generator = torch.Generator().manual_seed(self.seed("projection"))
        drawn = torch.randn(self.feature_size, projection, generator=generator)
        self.projection = math.sqrt(2 * gamma) * drawn
        self.phase = 2 * math.pi * torch.rand(projection, generator=generator)
        self.means = torch.zeros(0, projection, dtype=torch.float64)
        self.scatter = torch.zeros(projection, projection, dtype=torch.float64)
        self.counts = torch.zeros(0, dtype=torch.float64)

    def project(self, features: Tensor) -> Tensor:
        """(N, D) -> z, (N, M) float32."""
        angles = features.float() @ self.projection + self.phase
        return math.sqrt(2 / len(self.phase)) * angles.cos()

    def take(self, features: Tensor, task: Task) -> None:
        z = self.project(features).unsqueeze(0)
        new = measure_classes(z, task.new.labels - task.first, task.classes - task.first)
        old = ClassStatistics(self.means, self.scatter, self.counts)
        known = append_classes(old, new)
        self.means, self.scatter, self.counts = known
        covariance = known.covariance
        covariance.diagonal().add_(self.ridge)
        self.use_head(linear_discriminant(known.means, covariance))

    def scores(self, features: Tensor) -> Scores:
        return super().scores(self.project(features))

    @property
    def head_weights(self) -> int:
        return self.projection.numel() + self.weight.numel()
