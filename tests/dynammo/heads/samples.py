"""Features for tests of statistics and drift."""

from __future__ import annotations

import torch
from torch import Tensor


def samples(
    count: int = 60, classes: int = 3, size: int = 4, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Features (1, N, D) of classes around different means, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    means = 3 * torch.randn(classes, size, generator=generator)
    return (means[labels] + torch.randn(count, size, generator=generator)).unsqueeze(0), labels
