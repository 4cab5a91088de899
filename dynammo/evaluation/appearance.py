"""How unlike a picture is to those that the model is made for: another organ, another device.

A network may answer surely to a picture of something else altogether; a few plain numbers of its
pixels tell it. Nothing here loads more than NumPy: `dynammo predict` answers with it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_BLOCKS = 8  # a side: what is between blocks is coarse, what is inside of them fine
_LEAST = 1e-3  # of 1, the full range: flat pictures have no logarithm
_SHRINKAGE = 0.1
KINDS = 12  # K, of numbers


class Appearance(NamedTuple):
    """Pictures of one kind, as normal with this mean (K,) and precision (K, K)."""

    mean: Floats
    precision: Floats

    def distance(self, measured: Floats) -> Floats:
        """(N,): squared Mahalanobis distance of pictures, of which `measure` gave (N, K)."""
        centred = measured - self.mean
        found: Floats = ((centred @ self.precision) * centred).sum(axis=1)
        return found


def measure(pictures: NDArray[np.uint8]) -> Floats:
    """(N, S, S, 3) uint8 -> (N, K): mean and deviation of each colour, the correlations of colours,
    and logarithms of the brightness's mean step and of its deviation between and inside blocks.

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
    parts = [mean, deviation, np.stack(pairs, axis=1), np.log(logs + _LEAST)]
    return np.concatenate(parts, axis=1).astype(np.float64)


def fit(measured: Floats) -> Appearance:
    """What (N, K) pictures of one kind have in common; the covariance shrunk to its diagonal."""
    covariance = np.cov(measured, rowvar=False)
    shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * np.diag(np.diag(covariance))
    least = np.eye(len(covariance)) * 1e-6  # made pictures may all have the same colour
    precision = np.linalg.inv(shrunk + least).astype(np.float64)
    return Appearance(measured.mean(axis=0), precision)
