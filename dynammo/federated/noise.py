"""Class statistics with noise: (epsilon, delta)-differential privacy of a site's patients.

Neighbouring are two sets of training images of which one has all images of one patient more. What a
patient's P samples (views of images) add is weighed with 1 / P, and features x have unit length, so
that of

    counts n_c = sum w,   sums s_c = sum w x,   second moments M = sum w x x^T

the patient adds at most 1 each in the Euclidean and the Frobenius norm: sqrt(3) of all together,
and sqrt(3 m) of the statistics of m networks, which are released as one vector, with Gaussian noise
added to it. A further release of the same images spends as much again: epsilons and deltas add up.

Not covered: the adapter, which classes are there, and counts of answers to test images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor

from dynammo.evaluation.intervals import numbered
from dynammo.heads.statistics import ClassStatistics, Pooling

DELTA = 1e-5


def noise_scale(epsilon: float, sensitivity: float, delta: float = DELTA) -> float:
    """Standard deviation of Gaussian noise, the least that gives (epsilon, delta).

    It solves  Phi(d/2s - es/d) - exp(e) Phi(-d/2s - es/d) = delta  for s, with d the sensitivity.

    Raises:
        ValueError: epsilon is not above 0.

    Source: Balle and Wang 2018 (arXiv 1805.06530), theorem 8.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon must be above 0, got {epsilon}")
    if math.isinf(epsilon):
        return 0.0

    def excess(log_scale: float) -> float:
        ratio = math.exp(log_scale)  # s / d
        left = norm.cdf(0.5 / ratio - epsilon * ratio)
        right = math.exp(epsilon + norm.logcdf(-0.5 / ratio - epsilon * ratio))
        return float(left - right) - delta

    return sensitivity * math.exp(brentq(excess, -10, 20))


def noisy_classes(
    features: Tensor,
    labels: Tensor,
    patients: Sequence[str],
    classes: int,
    pooling: Pooling,
    scale: float,
    random: np.random.Generator,
) -> ClassStatistics:
    """Statistics of classes from noisy counts, sums and second moments.

    A patient counts as one sample, however many images there are. Of a noisy count less than 1 is
    taken as 1; of the scatter what is negative definite is left out, which spends nothing.

    Args:
        features: (V, N, D) of unit length.
        labels: (N,) in 0..classes - 1.
        patients: N names.
        classes: C.
        pooling: classes: second moments of each, a patient still adding at most 1 to all.
        scale: standard deviation of the noise, 0 for none.
        random: source of the noise; in use it must not be foreseeable.
    """
    views, _, size = features.shape
    owner = torch.from_numpy(numbered(patients))
    weight = 1 / (views * torch.bincount(owner).double()[owner])  # (N,)
    counts = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, views * weight)
    sums = torch.zeros(classes, size, dtype=torch.float64)
    moments = torch.zeros(classes if pooling == "classes" else 1, size, size, dtype=torch.float64)
    for label in range(classes):
        mine = labels == label
        x = features[:, mine].flatten(0, 1).double()
        weighed = x * weight[mine].repeat(views).unsqueeze(1)
        sums[label] = weighed.sum(0)
        moments[label % len(moments)] += weighed.T @ x

    def drawn(*shape: int) -> Tensor:
        return torch.from_numpy(random.normal(0, scale, shape)) if scale else torch.zeros(shape)

    counts = (counts + drawn(classes)).clamp(min=1)
    sums = sums + drawn(classes, size)
    # The Frobenius norm counts an entry beside the diagonal twice: half the variance is enough.
    square = drawn(len(moments), size, size)
    moments = moments + (square + square.mT) / 2
    between = sums.unsqueeze(2) * sums.unsqueeze(1) / counts.view(-1, 1, 1)
    scatter = moments - (between if pooling == "classes" else between.sum(0, keepdim=True))
    if scale:
        values, vectors = torch.linalg.eigh(scatter)
        scatter = (vectors * values.clamp(min=0).unsqueeze(-2)) @ vectors.mT
    means = sums / counts.unsqueeze(1)
    return ClassStatistics(means, scatter if pooling == "classes" else scatter[0], counts)
