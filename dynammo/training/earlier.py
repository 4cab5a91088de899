"""What training an adapter goes by instead of the old images: it must not undo what is known."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dynammo.network.network import Network


class GaussianReplay:
    """Features of old classes drawn from their statistics, class by class alike:

        z = mean_c + L e,  e ~ N(0, I),  L L^T = Sigma + 1e-5 mean(diag(Sigma)) I.

    They pass through the temporary head alone, so that it knows where old classes are and sends the
    new ones elsewhere.

    Args:
        means: (C, D).
        covariance: Sigma (D, D), of all classes together.

    Source: arXiv 2107.02149 (PASS) draws from prototypes, with one variance of all dimensions;
    here it is the whole covariance.
    """

    def __init__(self, means: Tensor, covariance: Tensor) -> None:
        jitter = 1e-5 * covariance.diagonal().mean() + torch.finfo(torch.float64).tiny
        identity = torch.eye(len(covariance), dtype=torch.float64)
        # Rounding may leave a covariance of few samples without a root.
        root = torch.linalg.cholesky(covariance + jitter * identity)
        self.means, self.root = means.float(), root.float()

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features (count, D) and the class of each (count,)."""
        classes, size = self.means.shape
        owner = torch.randint(classes, (count,), generator=generator)
        noise = torch.randn(count, size, generator=generator)
        return torch.addmm(self.means[owner], noise, self.root.T), owner


class Earlier(NamedTuple):
    """What is known of the batches before: `network`, in which all their adapters are merged, and
    where its features of the classes lie that the new batch does not have.
    """

    network: Network | None = None
    classes: GaussianReplay | None = None


def feature_distance(now: Tensor, before: Tensor) -> Tensor:
    """D times the mean squared distance between features (B, D) brought to length 1.

    Source: arXiv 1904.01769 holds features by their cosine, which is this but for a factor.
    """
    now, before = functional.normalize(now, dim=1), functional.normalize(before, dim=1)
    return now.shape[1] * (now - before).square().sum(1).mean()
