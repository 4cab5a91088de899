"""Normalisation of features between the network and a head."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def power_normalise(features: Tensor, power: float) -> Tensor:
    """Y / |y| with y = sign(x) |x|^power, for features x (..., D): no few large entries decide.

    Zeros stay zeros.

    Source: Perronnin 2010 (ECCV), improved Fisher vectors.
    """
    return functional.normalize(features.sign() * features.abs().pow(power), dim=-1)


def head_features(features: Tensor, head: dict[str, Tensor]) -> Tensor:
    """Features of the network (..., D) as a head takes them: normalised if it has a `power` ()."""
    return power_normalise(features, float(head["power"])) if "power" in head else features
