"""Class statistics: what is kept of a class's features instead of its images, and the head that
follows from them.

Of every class a mean, and of all classes together one within-class scatter matrix. They are taken
from all of a class's training images while these are at hand. When the network changes with the
next task, the statistics of old classes are carried over to the new features
(`dynammo.heads.drift`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dynammo.state import State


class ClassStatistics(NamedTuple):
    """Means and pooled within-class scatter of the features of C classes, all float64.

    `means` (C, D); `scatter` (D, D), the sum over all samples x of class c of
    (x - mean_c)(x - mean_c)^T; `counts` (C,), samples each class was measured on.
    """

    means: Tensor
    scatter: Tensor
    counts: Tensor

    def state(self) -> State:
        """For a checkpoint: of the scatter, which is symmetric, the lower triangle."""
        rows, columns = torch.tril_indices(*self.scatter.shape)
        return {
            "means": self.means,
            "scatter": self.scatter[rows, columns],
            "counts": self.counts,
        }

    @staticmethod
    def of(state: State) -> ClassStatistics:
        """What `state` gave."""
        scatter = _square(state["scatter"], state["means"].shape[1])
        return ClassStatistics(state["means"], scatter, state["counts"])

    @property
    def covariance(self) -> Tensor:
        """(D, D), maximum likelihood: scatter / number of samples."""
        return self.scatter / self.counts.sum()


def shrunk_covariance(statistics: ClassStatistics, shrinkage: float) -> Tensor:
    """(D, D): (1 - s) Sigma + s mean(diag(Sigma)) I, which has an inverse.

    Args:
        statistics: of which Sigma is the covariance.
        shrinkage: s in (0, 1].

    Source: Friedman 1989, regularised discriminant analysis.
    """
    covariance = statistics.covariance
    identity = torch.eye(len(covariance), dtype=torch.float64)
    # Without any spread (a sample a class) the nearest mean wins, whatever the scale.
    variance = covariance.diagonal().mean()
    variance = torch.where(variance > 0, variance, torch.ones_like(variance))
    return (1 - shrinkage) * covariance + shrinkage * variance * identity


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


def add_samples(
    old: ClassStatistics, new: ClassStatistics, owner: Sequence[int]
) -> ClassStatistics:
    """Statistics of the samples of both: further samples of known classes, new classes, or both.

    Of class c with n = n1 + n2 samples

        mu = (n1 mu1 + n2 mu2) / n,    S = S1 + S2 + sum_c (n1 n2 / n) (mu1 - mu2)(mu1 - mu2)^T,

    which is what all samples measured together give.

    Args:
        old: of C classes.
        new: of other samples, under the same network.
        owner: for each class of `new` its index among all; those from C on are new classes.

    Source: Chan, Golub, LeVeque 1979, updating formulae.
    """
    total = max(len(old.means), *(index + 1 for index in owner))
    grown = total - len(old.means)
    counts = torch.cat([old.counts, torch.zeros(grown, dtype=torch.float64)])
    means = torch.cat([old.means, new.means.new_zeros(grown, new.means.shape[1])])
    scatter = old.scatter + new.scatter
    for index, mean, count in zip(owner, new.means, new.counts, strict=True):
        was = counts[index].clone()
        if was == 0:
            means[index], counts[index] = mean, count
            continue
        apart = means[index] - mean
        scatter += (was * count / (was + count)) * torch.outer(apart, apart)
        means[index] = (was * means[index] + count * mean) / (was + count)
        counts[index] = was + count
    return ClassStatistics(means, scatter, counts)


def remove_samples(
    statistics: ClassStatistics, part: ClassStatistics, owner: Sequence[int]
) -> ClassStatistics:
    """Statistics without some of the samples: the inverse of `add_samples`, up to rounding.

    A class that loses all its samples keeps its row, with count 0.

    Args:
        statistics: of all samples.
        part: of those to take out, under the same network.
        owner: for each class of `part` its index among all.

    Raises:
        ValueError: a class has fewer samples than are to be taken out.
    """
    means, counts = statistics.means.clone(), statistics.counts.clone()
    scatter = statistics.scatter - part.scatter
    for index, mean, count in zip(owner, part.means, part.counts, strict=True):
        left = counts[index] - count
        if left < 0:
            raise ValueError(f"class {index} has {counts[index]:g} samples, not {count:g}")
        if left > 0:
            rest = (counts[index] * means[index] - count * mean) / left
            apart = rest - mean
            scatter -= (left * count / counts[index]) * torch.outer(apart, apart)
            means[index] = rest
        counts[index] = left
    return ClassStatistics(means, scatter, counts)


def drop_classes(statistics: ClassStatistics, kept: Sequence[int]) -> ClassStatistics:
    """The rows of some classes, in the order given; the scatter stays as it is."""
    rows = torch.tensor(list(kept), dtype=torch.int64)
    return ClassStatistics(statistics.means[rows], statistics.scatter, statistics.counts[rows])


def pack(classes: list[ClassStatistics]) -> dict[str, Tensor]:
    """Statistics of single classes for storage: of each scatter the lower triangle, in float32."""
    size = classes[0].means.shape[1]
    rows, columns = torch.tril_indices(size, size)
    return {
        "means": torch.cat([own.means for own in classes]),
        "counts": torch.cat([own.counts for own in classes]),
        "scatter": torch.stack([own.scatter[rows, columns].float() for own in classes]),
    }


def unpack(packed: dict[str, Tensor], chosen: list[int]) -> ClassStatistics:
    """Statistics of some of the classes that `pack` stored, together."""
    total = packed["scatter"][chosen].double().sum(0)
    scatter = _square(total, packed["means"].shape[1])
    return ClassStatistics(packed["means"][chosen], scatter, packed["counts"][chosen])


def _square(triangle: Tensor, size: int) -> Tensor:
    """The symmetric matrix (D, D) with a lower triangle."""
    rows, columns = torch.tril_indices(size, size)
    lower = torch.zeros(size, size, dtype=torch.float64)
    lower[rows, columns] = triangle
    return lower + lower.tril(-1).T
