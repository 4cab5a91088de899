"""Class statistics: what is kept of a class's features instead of its images, and the head that
follows from them.

Of every class a mean, and of all classes together one within-class scatter matrix, or one of each.
They are taken from all of a class's training images while these are at hand. When the network
changes with the next task, the statistics of old classes are carried over to the new features
(`dynammo.heads.drift`). On a frozen network such statistics are those of SLDA (arXiv 1909.01520).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dynammo.state import State

Pooling = Literal["samples", "classes"]


class ClassStatistics(NamedTuple):
    """Means and within-class scatter of the features of C classes, all float64.

    `means` (C, D); `scatter`, of all classes together, (D, D), or of each, (C, D, D), is the sum
    over samples x of class c of (x - mean_c)(x - mean_c)^T; `counts` (C,), samples each class was
    measured on.
    """

    means: Tensor
    scatter: Tensor
    counts: Tensor

    def state(self) -> State:
        """For a checkpoint: of the scatter, which is symmetric, the lower triangle."""
        return {"means": self.means, "scatter": _triangle(self.scatter), "counts": self.counts}

    @staticmethod
    def of(state: State) -> ClassStatistics:
        """What `state` gave."""
        scatter = _square(state["scatter"], state["means"].shape[1])
        return ClassStatistics(state["means"], scatter, state["counts"])

    @property
    def pooling(self) -> Pooling:
        """What weighs the same in `covariance`."""
        return "samples" if self.scatter.dim() == 2 else "classes"

    @property
    def covariance(self) -> Tensor:
        """(D, D), maximum likelihood, of all classes together: scatter / number of samples; where
        the scatter of each is known, the mean of the classes' own covariances.
        """
        if self.pooling == "samples":
            return self.scatter / self.counts.sum()
        there = self.counts > 0
        return (self.scatter[there] / self.counts[there].view(-1, 1, 1)).mean(0)

    def pooled(self, pooling: Pooling) -> ClassStatistics:
        """The same with the scatter of all classes together, if it is to be pooled by samples.

        Raises:
            ValueError: the scatter of each class is asked for, and only that of all is known.
        """
        if pooling == self.pooling:
            return self
        if pooling == "classes":
            raise ValueError("the scatter of each class is not known, only that of all together")
        return self._replace(scatter=self.scatter.sum(0))


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


def measure_classes(
    features: Tensor, labels: Tensor, classes: int, pooling: Pooling = "samples"
) -> ClassStatistics:
    """The statistics of classes whose images are at hand.

    Args:
        features: (V, N, D), V augmentation views of N images; each view counts as a sample.
        labels: (N,) in 0..classes - 1.
        classes: C.
        pooling: classes: the scatter of each, C times as many numbers.

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
    if pooling == "samples":
        return ClassStatistics(means, centred.T @ centred, counts)
    own = (centred[owner == label] for label in range(classes))
    return ClassStatistics(means, torch.stack([x.T @ x for x in own]), counts)


def every_fifth(labels: Tensor, groups: Sequence[str | None] | None = None) -> Tensor:
    """(N,) bool: of each class every fifth image, or group of images, in their order: held out.

    Args:
        labels: (N,).
        groups: of the images, which are not split; None is a group of its own.
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    rank: dict[int, dict[object, int]] = {}  # of each class's groups
    for place, label in enumerate(labels.tolist()):
        group = groups[place] if groups is not None else None
        own = rank.setdefault(label, {})
        held[place] = own.setdefault((place,) if group is None else group, len(own)) % 5 == 4
    return held


def append_classes(old: ClassStatistics, new: ClassStatistics) -> ClassStatistics:
    """The classes of both, old ones first. Scatter matrices of all classes add up."""
    first = len(old.means)
    return add_samples(old, new, range(first, first + len(new.means)))


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
    scatter = old.scatter
    if old.pooling == "classes":
        scatter = torch.cat([scatter, scatter.new_zeros(grown, *scatter.shape[1:])])
    scatter = _plus(scatter, new.scatter, owner)
    for index, mean, count in zip(owner, new.means, new.counts, strict=True):
        was = counts[index].clone()
        if was == 0:
            means[index], counts[index] = mean, count
            continue
        apart = means[index] - mean
        _of(scatter, index).add_((was * count / (was + count)) * torch.outer(apart, apart))
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
    scatter = _plus(statistics.scatter, -part.scatter, owner)
    for index, mean, count in zip(owner, part.means, part.counts, strict=True):
        left = counts[index] - count
        if left < 0:
            raise ValueError(f"class {index} has {counts[index]:g} samples, not {count:g}")
        if left > 0:
            rest = (counts[index] * means[index] - count * mean) / left
            apart = rest - mean
            _of(scatter, index).sub_((left * count / counts[index]) * torch.outer(apart, apart))
            means[index] = rest
        counts[index] = left
    return ClassStatistics(means, scatter, counts)


def drop_classes(statistics: ClassStatistics, kept: Sequence[int]) -> ClassStatistics:
    """The rows of some classes, in the order given; a scatter of all together stays as it is."""
    rows = torch.tensor(list(kept), dtype=torch.int64)
    scatter = statistics.scatter
    if statistics.pooling == "classes":
        scatter = scatter[rows]
    return ClassStatistics(statistics.means[rows], scatter, statistics.counts[rows])


def pack(classes: ClassStatistics) -> State:
    """Statistics with a scatter of each class for storage: lower triangles, in float32."""
    return {**classes.state(), "scatter": _triangle(classes.scatter).float()}


def unpack(packed: State) -> ClassStatistics:
    """What `pack` stored."""
    return ClassStatistics.of({**packed, "scatter": packed["scatter"].double()})


def _plus(scatter: Tensor, other: Tensor, owner: Sequence[int]) -> Tensor:
    """The sum of scatters: of all classes together, or of each, `owner` being those of `other`."""
    if scatter.dim() == 2:
        return scatter + other
    return scatter.index_add(0, torch.tensor(list(owner)), other)


def _of(scatter: Tensor, index: int) -> Tensor:
    """A view of the scatter that a class's samples belong to."""
    return scatter if scatter.dim() == 2 else scatter[index]


def _triangle(square: Tensor) -> Tensor:
    """The lower triangles of matrices (..., D, D), row by row."""
    rows, columns = torch.tril_indices(*square.shape[-2:])
    return square[..., rows, columns]


def _square(triangle: Tensor, size: int) -> Tensor:
    """The symmetric matrices (..., D, D) with lower triangles."""
    rows, columns = torch.tril_indices(size, size)
    lower = triangle.new_zeros(*triangle.shape[:-1], size, size)
    lower[..., rows, columns] = triangle
    return lower + lower.tril(-1).mT
