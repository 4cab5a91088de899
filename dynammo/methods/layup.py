"""LayUP: ridge regression on the features of several levels."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from torch import Tensor
from torch.nn import functional

from dynammo.config import Config
from dynammo.heads.linear import Scores
from dynammo.methods.analytic import Analytic
from dynammo.methods.base import About, Style, Task
from dynammo.methods.prototypes import similarity_scores
from dynammo.methods.ranpac import solve_ridge
from dynammo.state import State

RIDGES = np.logspace(-4, 3, 8)


class LayeredRidge(Analytic):
    """Class scores are x (G + ridge I)^-1 Q, with G = sum x^T x and Q = sum x^T onehot(y) over all
    images seen, x being the features of several levels side by side (`backbone.levels`).

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        ridge: above 0; none chooses it from 10^-4, ..., 10^3 by 4-fold cross-validation on the
            newest task's images.
    """

    about = About(
        meaning="frozen backbone; ridge regression on its features of several levels (LayUP)",
        source="arXiv 2312.08888",
        memory="none",
        style=Style("#56B4E9", "^"),
    )
    kept = ("gram", "sums", "head")

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        ridge: float | None = None,
    ) -> None:
        super().__init__(config, weights, device)
        if ridge is not None and ridge <= 0:
            raise ValueError(f"ridge must be above 0, got {ridge}")
        self.ridge = ridge
        size = self.feature_size
        self.gram = torch.zeros(size, size, dtype=torch.float64)
        self.sums = torch.zeros(size, 0, dtype=torch.float64)
        self.head = torch.zeros(size, 0, dtype=torch.float64)

    def take(self, features: Tensor, task: Task) -> None:
        targets = functional.one_hot(task.new.labels, task.classes).double()
        grown = task.classes - self.sums.shape[1]
        self.gram = self.gram + features.T @ features
        self.sums = functional.pad(self.sums, (0, grown)) + features.T @ targets
        ridge = self.ridge or choose_ridge(features, targets, self.seed("ridge", task.number))
        self.head = solve_ridge(self.gram, self.sums, ridge)

    def scores(self, features: Tensor) -> Scores:
        return similarity_scores(features.double() @ self.head)

    @property
    def head_weights(self) -> int:
        return self.head.numel()


def choose_ridge(features: Tensor, targets: Tensor, seed: int) -> float:
    """The ridge that predicts each quarter of the images best from the others (squared error).

    Args:
        features: (N, D) float64.
        targets: (N, C) float64.
        seed: of the quarters.

    Raises:
        ValueError: fewer than 4 images.
    """
    if len(features) < 4:
        raise ValueError(f"choosing the ridge needs at least 4 images, got {len(features)}")
    search = RidgeCV(
        RIDGES,
        fit_intercept=False,
        scoring="neg_mean_squared_error",
        cv=KFold(4, shuffle=True, random_state=seed % 2**32),
    )
    return float(search.fit(features.numpy(), targets.numpy()).alpha_)
