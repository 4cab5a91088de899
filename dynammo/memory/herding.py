"""The exemplar memory: which images of old classes are kept."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dynammo.config import MemoryConfig
from dynammo.errors import ConfigError


def quota(memory: MemoryConfig, classes_seen: int) -> int:
    """Images kept of each class: `per_class`, or size // classes seen.

    Raises:
        ConfigError: the memory cannot hold one image of each class.
    """
    if memory.per_class is not None:
        return memory.per_class
    assert memory.size is not None
    share = memory.size // classes_seen
    if share == 0:
        wanted = f"one exemplar of each of {classes_seen} classes"
        raise ConfigError(
            [f"memory.size {memory.size} cannot hold {wanted}: --set memory.size=N makes it larger"]
        )
    return share


def herd(features: Tensor, count: int, weights: Tensor | None = None) -> list[int]:
    """Choose images whose running mean stays closest to the class mean.

    With unit features f_i and mu = mean_i f_i, the k-th choice minimises
    || mu - (f_i + sum of the k-1 chosen) / k || over the images not chosen yet; equal distances go
    to the lowest index. A prefix of the choice is the choice for a smaller count.

    Args:
        features: (N, D) features of one class's un-augmented images.
        count: how many to choose; all of them where N is smaller.
        weights: (N,) what each counts in the mean mu; all the same by default.

    Returns:
        Indices in order of choice.

    Source: Welling 2009; Rebuffi et al. 2017 (iCaRL), algorithm 4.
    """
    unit = normalize(features.double(), dim=1)
    target = unit.mean(0) if weights is None else (weights.double() / weights.sum()) @ unit
    total = torch.zeros_like(target)
    free = torch.ones(len(unit), dtype=torch.bool)
    chosen: list[int] = []
    for k in range(1, min(count, len(unit)) + 1):
        distance = (target - (total + unit) / k).square().sum(1)
        index = int(distance.masked_fill(~free, torch.inf).argmin())
        chosen.append(index)
        free[index] = False
        total += unit[index]
    return chosen
