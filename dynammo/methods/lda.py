"""Linear discriminant analysis as scikit-learn does it, class by class."""

from __future__ import annotations

import torch
from sklearn.covariance import empirical_covariance, ledoit_wolf, shrunk_covariance
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from dynammo.config import Config
from dynammo.heads.discriminant import linear_discriminant
from dynammo.methods.analytic import LinearAnalytic, of_classes
from dynammo.methods.base import About, Style, Task
from dynammo.state import State


class LinearDiscriminant(LinearAnalytic):
    """What `LinearDiscriminantAnalysis(solver="lsqr", shrinkage=..., priors=<equal>)` learns from
    all images at once: the mean of each class, and the mean of the classes' shrunk covariances.

    These add up, so that no image is kept. `frozen` is the same but for features at unit length,
    mirrored images, a covariance in which every sample weighs the same, a fixed shrinkage, and a
    calibrated temperature.

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        shrinkage: of each class's covariance, in [0, 1]; none: by Ledoit and Wolf ("auto").
    """

    about = About(
        meaning="frozen backbone; scikit-learn's linear discriminant analysis of its features",
        source="baseline",
        memory="none",
        style=Style("#595959", "s"),
    )
    kept = ("means", "covariance", "weight", "bias")

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        shrinkage: float | None = None,
    ) -> None:
        super().__init__(config, weights, device)
        self.shrinkage = shrinkage
        self.means, self.covariance = no_classes(self.feature_size, shrinkage)

    def take(self, features: Tensor, task: Task) -> None:
        self.means, self.covariance = with_classes(
            self.means, self.covariance, of_classes(features, task), self.shrinkage
        )
        self.use_head(linear_discriminant(self.means, self.covariance))


def no_classes(size: int, shrinkage: float | None) -> tuple[Tensor, Tensor]:
    """What `with_classes` begins with.

    Raises:
        ValueError: the shrinkage is none.
    """
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must be from 0 to 1, got {shrinkage}")
    double = torch.float64
    return torch.zeros(0, size, dtype=double), torch.zeros(size, size, dtype=double)


def with_classes(
    means: Tensor, covariance: Tensor, new: list[Tensor], shrinkage: float | None
) -> tuple[Tensor, Tensor]:
    """Class means (C, D) and the mean of the classes' shrunk covariances (D, D), with new classes.

    Args:
        means: of the classes so far.
        covariance: likewise.
        new: (N_c, D) float64, the features of each new class.
        shrinkage: see `shrunk`.
    """
    total = len(means) * covariance
    for own in new:
        total = total + shrunk(own, shrinkage)
    means = torch.cat([means, *(own.mean(0, keepdim=True) for own in new)])
    return means, total / len(means)


def shrunk(features: Tensor, shrinkage: float | None) -> Tensor:
    """The covariance (D, D) of a class's features (N, D), shrunk towards a multiple of I.

    Without a given shrinkage it is that of Ledoit and Wolf (2004) for the standardised features,
    as in scikit-learn.

    Raises:
        ValueError: the images have all the same features.
    """
    x = features.numpy()
    if not x.std(0).any():
        raise ValueError("a covariance needs at least 2 different images of each class")
    if shrinkage is not None:
        return torch.from_numpy(shrunk_covariance(empirical_covariance(x), shrinkage))
    scaler = StandardScaler().fit(x)
    covariance, _ = ledoit_wolf(scaler.transform(x))
    return torch.from_numpy(scaler.scale_[:, None] * covariance * scaler.scale_)
