"""Drift: what a change of the network does to features, and so to statistics of old classes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynammo.heads.statistics import ClassStatistics
from dynammo.state import State


class Drift(NamedTuple):
    """An affine map of features, x' = x + M^T (x - a) + b, all float64.

    `slope` M (D, D), `centre` a (D,), `shift` b (D,).
    """

    slope: Tensor
    centre: Tensor
    shift: Tensor

    def state(self) -> State:
        """For a checkpoint, in single precision: it is an estimate."""
        return {name: value.float() for name, value in self._asdict().items()}

    @staticmethod
    def of(state: State) -> Drift:
        """What `state` gave."""
        return Drift(**{name: value.double() for name, value in state.items()})

    def features(self, features: Tensor) -> Tensor:
        """Features (N, D) as they would be now."""
        x = features.double()
        return x + (x - self.centre) @ self.slope + self.shift

    def statistics(self, statistics: ClassStatistics) -> ClassStatistics:
        """Means are mapped as samples are, and the scatter S becomes (I + M)^T S (I + M)."""
        change = torch.eye(len(self.slope), dtype=torch.float64) + self.slope
        return ClassStatistics(
            self.features(statistics.means),
            change.T @ statistics.scatter @ change,
            statistics.counts,
        )


def measure_drift(before: Tensor, after: Tensor, ridge: float) -> Drift:
    """Fit the map by what the change did to images at hand.

    a and b are the means of `before` and of `after - before`, and M the ridge regression of the
    drift on the features,

        M = (B^T B + ridge * mean(diag(B^T B)) I)^-1 B^T (A - B),

    B and A being the centred features before and after. Features that did not change give the
    identity.

    Args:
        before: (N, D) features of any images under the network as it was.
        after: (N, D) of the same images under the changed network.
        ridge: relative to the mean diagonal entry; larger trusts the images' drift less in
            directions in which they vary little.

    Raises:
        ValueError: shapes differ, or there is no image.

    Source: after LDC (arXiv 2407.08536), which trains a linear map from old to new features and
    applies it to prototypes; here it is affine, in closed form, and applied to the covariance, too.
    The translation of means alone is semantic drift compensation (Yu 2020, arXiv 2004.00440).
    """
    if before.shape != after.shape or len(before) == 0:
        raise ValueError(f"features of the same images: {before.shape} against {after.shape}")
    before, drift = before.double(), (after - before).double()
    centre, shift = before.mean(0), drift.mean(0)
    centred = before - centre
    gram = centred.T @ centred
    identity = torch.eye(len(gram), dtype=torch.float64)
    # Never singular, also where all images are the same.
    floor = torch.finfo(torch.float64).tiny
    regular = gram + (ridge * gram.diagonal().mean()).clamp_min(floor) * identity
    return Drift(torch.linalg.solve(regular, centred.T @ (drift - shift)), centre, shift)
