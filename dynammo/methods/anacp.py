"""AnaCP: features pulled apart by ridge regressions onto class targets, and a head on top."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import normalize

from dynammo.config import Config
from dynammo.heads.linear import Scores
from dynammo.heads.statistics import (
    ClassStatistics,
    append_classes,
    measure_classes,
    shrunk_covariance,
)
from dynammo.methods.analytic import Analytic
from dynammo.methods.base import About, Style, Task
from dynammo.methods.prototypes import similarity_scores
from dynammo.state import State

PROJECTIONS = 3


class AnalyticProjection(Analytic):
    """For features x of unit length and W_h drawn once from N(0, 1), h = 1, 2, 3,

        Z_h = GELU(x W_h),
        theta_h = (sum Z_h^T Z_h + ridge I)^-1 sum_c n_c mean_c(Z_h) target_c^T,
        u(x) = mean_h of Z_h theta_h at unit length,

    with targets as in `target_means`; and class scores are the ridge regression on one-hot targets
    of GELU(u W). That is fitted after each task to features drawn anew from N(mean_c, Sigma), for u
    changes with every task and old images are gone.

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        projection: columns of each W. The paper takes 5000; what is kept has the square of that.
        ridge: above 0.
        samples: drawn of each class.
        shrinkage: of Sigma, in (0, 1]: where there are fewer images than features, its inverse
            root does not exist. The paper's backbone has more.
    """

    about = About(
        meaning="frozen backbone; ridge regressions that pull classes apart, and a head (AnaCP)",
        source="arXiv 2511.13880",
        memory="none",
        style=Style("#009E73", "^"),
    )
    kept = ("grams", "sums", "means", "scatter", "counts", "thetas", "head")

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        projection: int = 2000,
        ridge: float = 100.0,
        samples: int = 200,
        shrinkage: float = 0.1,
    ) -> None:
        super().__init__(config, weights, device)
        if projection < 1 or samples < 1:
            raise ValueError("projection and samples must be at least 1")
        if ridge <= 0 or not 0 < shrinkage <= 1:
            raise ValueError("ridge must be above 0, shrinkage above 0 and at most 1")
        self.ridge, self.samples, self.shrinkage = ridge, samples, shrinkage
        size = self.feature_size
        generator = torch.Generator().manual_seed(self.seed("projection"))
        drawn = torch.randn(PROJECTIONS + 1, size, projection, generator=generator)
        self.projections, self.last = drawn[:PROJECTIONS].double(), drawn[-1].double()
        double = torch.float64
        self.grams = torch.zeros(PROJECTIONS, projection, projection, dtype=double)
        self.sums = torch.zeros(PROJECTIONS, projection, 0, dtype=double)
        self.means, self.counts = torch.zeros(0, size, dtype=double), torch.zeros(0, dtype=double)
        self.scatter = torch.zeros(size, size, dtype=double)
        self.thetas = torch.zeros(PROJECTIONS, projection, size, dtype=double)
        self.head = torch.zeros(projection, 0, dtype=double)

    def take(self, features: Tensor, task: Task) -> None:
        x = normalize(features, dim=1)
        new = measure_classes(x[None], task.new.labels - task.first, task.classes - task.first)
        known = append_classes(ClassStatistics(self.means, self.scatter, self.counts), new)
        self.means, self.scatter, self.counts = known
        covariance = shrunk_covariance(known, self.shrinkage)
        z = functional.gelu(x @ self.projections)
        onehot = functional.one_hot(task.new.labels, task.classes).double()
        grown = task.classes - self.sums.shape[2]
        self.grams = self.grams + z.mT @ z
        self.sums = functional.pad(self.sums, (0, grown)) + z.mT @ onehot
        targets = target_means(known.means, covariance)
        self.thetas = self._solve(self.grams, self.sums @ targets)
        drawn, labels = self._draw(covariance, self.seed("draw", task.number))
        g = functional.gelu(self.pull(drawn) @ self.last)
        onehot = functional.one_hot(labels, task.classes).double()
        self.head = self._solve(g.T @ g, g.T @ onehot)

    def _solve(self, gram: Tensor, sums: Tensor) -> Tensor:
        """(G + ridge I)^-1 Q, of one or of several."""
        regular = gram + self.ridge * torch.eye(gram.shape[-1], dtype=torch.float64)
        solution: Tensor = torch.linalg.solve(regular, sums)
        return solution

    def _draw(self, covariance: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Features (C * samples, D) of all classes, and their labels."""
        generator = torch.Generator().manual_seed(seed)
        classes, size = self.means.shape
        noise = torch.randn(classes, self.samples, size, generator=generator).double()
        root = torch.linalg.cholesky(covariance)
        drawn = self.means.unsqueeze(1) + noise @ root.T
        labels = torch.arange(classes).repeat_interleave(self.samples)
        return normalize(drawn.flatten(0, 1), dim=1), labels

    def pull(self, x: Tensor) -> Tensor:
        """Features (N, D) of unit length -> u, (N, D)."""
        heads = functional.gelu(x @ self.projections) @ self.thetas
        return normalize(heads, dim=2).mean(0)

    def scores(self, features: Tensor) -> Scores:
        u = self.pull(normalize(features.double(), dim=1))
        return similarity_scores(functional.gelu(u @ self.last) @ self.head)

    @property
    def head_weights(self) -> int:
        parts = (self.projections, self.thetas, self.last, self.head)
        return sum(part.numel() for part in parts)


def target_means(means: Tensor, covariance: Tensor) -> Tensor:
    """Where classes are pulled to (C, D): their whitened means further apart.

    Every singular value above 0 of the whitened and centred means grows by 1; then they are mapped
    back, and brought to unit length.

    Args:
        means: (C, D) float64.
        covariance: (D, D), positive definite.
    """
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors @ (values.sqrt().unsqueeze(1) * vectors.T)
    whitened = means @ vectors @ (values.rsqrt().unsqueeze(1) * vectors.T)
    centre = whitened.mean(0)
    u, s, v = torch.linalg.svd(whitened - centre, full_matrices=False)
    grown = torch.where(s > 1e-9 * s.max(), s + 1, s)
    return normalize((centre + u @ (grown.unsqueeze(1) * v)) @ root, dim=1)
