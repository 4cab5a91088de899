"""How unlike a picture is to those that the model is made for: another organ, another device.

A network may answer surely to a picture of something else altogether; a few plain numbers of its
pixels tell it. Nothing here loads more than NumPy: `dynammo predict` answers with it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
_BLOCKS = 8  # a side: what is between blocks is coarse, what is inside of them fine
_LEAST = 1e-3  # of 1, the full range: flat pictures have no logarithm
_SHRINKAGE = 0.1
_FOLDS = 5
KINDS = 12  # K, of numbers


class Appearance(NamedTuple):
    """Pictures of C classes, as normal with these means (C, K) and a common precision (K, K)."""

    means: Floats
    precision: Floats

    def distance(self, measured: Floats) -> Floats:
        """(N,): squared Mahalanobis distance to the nearest class, from (N, K) of `measure`."""
        centred = measured[:, None] - self.means
        found: Floats = ((centred @ self.precision) * centred).sum(axis=2).min(axis=1)
        return found


def measure(pictures: NDArray[np.uint8]) -> Floats:
    """(N, S, S, 3) uint8 -> (N, K): mean and log deviation of each colour, log(1 - r) of the
    correlations r of colours, logarithms of the mean step of brightness and of its deviation
    between and inside blocks. Logarithms, for a few odd pictures would otherwise be far from all.

    Every second row and column is enough, and takes a quarter of the time.
    """
    x = pictures[:, ::2, ::2].astype(np.float32) / 255
    count, height, width, _ = x.shape
    mean, deviation = x.mean(axis=(1, 2)), x.std(axis=(1, 2))
    flat = (x - mean[:, None, None]).reshape(count, -1, 3)
    covariance = np.einsum("npi,npj->nij", flat, flat) / flat.shape[1]
    scale = np.maximum(deviation, _LEAST)
    correlation = covariance / (scale[:, :, None] * scale[:, None, :])
    grey = x.mean(axis=3)
    steps = np.abs(np.diff(grey, axis=1)).mean((1, 2)) + np.abs(np.diff(grey, axis=2)).mean((1, 2))
    high, wide = max(height // _BLOCKS, 1), max(width // _BLOCKS, 1)
    cut = grey[:, : height // high * high, : width // wide * wide]
    blocks = cut.reshape(count, height // high, high, width // wide, wide)
    averages = blocks.mean(axis=(2, 4))
    inside = (blocks - averages[:, :, None, :, None]).std(axis=(1, 2, 3, 4))
    logs = np.stack([steps, averages.std(axis=(1, 2)), inside], axis=1)
    pairs = [correlation[:, 0, 1], correlation[:, 0, 2], correlation[:, 1, 2]]
    unlike = 1 - np.stack(pairs, axis=1)
    parts = [mean, np.log(deviation + 0.01), np.log(np.maximum(unlike, 0) + _LEAST)]
    parts.append(np.log(logs + _LEAST))
    return np.concatenate(parts, axis=1).astype(np.float64)


def fit(measured: Floats, labels: NDArray[np.int64]) -> Appearance:
    """What pictures of each class have in common.

    Args:
        measured: (N, K) of `measure`.
        labels: (N,), any numbers.
    """
    classes, place = np.unique(labels, return_inverse=True)
    means = np.stack([measured[place == c].mean(axis=0) for c in range(len(classes))])
    centred = measured - means[place]
    covariance = centred.T @ centred / len(measured)
    shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * np.diag(np.diag(covariance))
    least = np.eye(KINDS) * 1e-6  # made pictures may all have the same colour
    return Appearance(means, np.linalg.inv(shrunk + least).astype(np.float64))


def distances_of_others(measured: Floats, labels: NDArray[np.int64]) -> Floats:
    """(N,): of each picture the distance that it has from the others: a fifth is left out each
    time. From these a threshold can be set (cross-conformal, Vovk 2015).
    """
    found = np.empty(len(measured))
    fold = np.arange(len(measured)) % _FOLDS
    for own in (fold == number for number in range(_FOLDS)):
        found[own] = fit(measured[~own], labels[~own]).distance(measured[own])
    return found
