"""Class statistics: what is kept of a class's features instead of its images, and the head that
follows from them.

Of every class a mean, and of all classes together one within-class scatter matrix. They are taken
from all of a class's training images while these are at hand. When the network changes with the
next task, the statistics of old classes are carried over to the new features
(`correct_drift`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ClassStatistics(NamedTuple):
    """Means and pooled within-class scatter of the features of C classes, all float64.

    `means` (C, D); `scatter` (D, D), the sum over all samples x of class c of
    (x - mean_c)(x - mean_c)^T; `counts` (C,), samples each class was measured on.
    """

    means: Tensor
    scatter: Tensor
    counts: Tensor

    @property
    def covariance(self) -> Tensor:
        """(D, D), maximum likelihood: scatter / number of samples."""
        return self.scatter / self.counts.sum()


def measure_classes(features: Tensor, labels: Tensor, classes: int) -> ClassStatistics:
    """The statistics of classes whose images are at hand.

    Args:
        features: (V, N, D), V augmentation views of N images; each view counts as a sample.
        labels: (N,) in 0..classes - 1.
        classes: C.

    Raises:
        ValueError: a class has no sample.
    """
    samples = features.flatten(0, 1).double()
    owner = labels.repeat(len(features))
    counts = torch.bincount(owner, minlength=classes).double()
    if bool((counts == 0).any()):
        empty = (counts == 0).nonzero().flatten().tolist()
        raise ValueError(f"no samples of classes {empty}")
    sums = torch.zeros(classes, samples.shape[1], dtype=torch.float64)
    means = sums.index_add_(0, owner, samples) / counts.unsqueeze(1)
    centred = samples - means[owner]
    return ClassStatistics(means, centred.T @ centred, counts)


def append_classes(old: ClassStatistics, new: ClassStatistics) -> ClassStatistics:
    """The classes of both, old ones first. The scatter matrices add up."""
    return ClassStatistics(
        torch.cat([old.means, new.means]),
        old.scatter + new.scatter,
        torch.cat([old.counts, new.counts]),
    )


def correct_drift(
    statistics: ClassStatistics, before: Tensor, after: Tensor, ridge: float
) -> ClassStatistics:
    """Carry statistics over to a changed network, by what the change did to images at hand.

    The drift x -> x' is modelled as affine, x' = x + M^T (x - a) + b, with a and b the means of
    `before` and of `after - before`, and M the ridge regression of the drift on the features,

        M = (B^T B + ridge * mean(diag(B^T B)) I)^-1 B^T (A - B),

    B and A being the centred features before and after. Means are mapped as samples are, and the
    scatter S becomes (I + M)^T S (I + M). Features that did not change leave everything as it was.

    Args:
        statistics: of the old classes, under the network as it was.
        before: (N, D) features of any images under the network as it was.
        after: (N, D) of the same images under the changed network.
        ridge: relative to the mean diagonal entry; larger trusts the images' drift less in
            directions in which they vary little.

    Raises:
        ValueError: shapes differ, or there is no image.

    Source: this project; the translation of means alone is semantic drift compensation (Yu 2020,
    arXiv 2004.00440).
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
    slope = torch.linalg.solve(regular, centred.T @ (drift - shift))
    change = identity + slope
    return ClassStatistics(
        statistics.means + (statistics.means - centre) @ slope + shift,
        change.T @ statistics.scatter @ change,
        statistics.counts,
    )
