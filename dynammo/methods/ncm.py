"""Nearest class mean on the frozen backbone."""

from __future__ import annotations

import torch
from torch import Tensor

from dynammo.config import Config
from dynammo.heads.linear import Scores
from dynammo.methods.analytic import Analytic, of_classes
from dynammo.methods.base import About, Style, Task
from dynammo.methods.prototypes import cosine_scores
from dynammo.state import State


class NearestClassMean(Analytic):
    """A class is the mean of its images' features; the one with the largest cosine is predicted.

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
    """

    about = About(
        meaning="frozen backbone; the class with the mean of the largest cosine (SimpleCIL)",
        source="arXiv 2303.07338",
        memory="none",
        style=Style("#595959", "D"),
    )
    kept = ("means",)

    def __init__(
        self, config: Config, weights: State | None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(config, weights, device)
        self.means = torch.zeros(0, self.feature_size)

    def take(self, features: Tensor, task: Task) -> None:
        means = [own.mean(0) for own in of_classes(features.float(), task)]
        self.means = torch.cat([self.means, torch.stack(means)])

    def scores(self, features: Tensor) -> Scores:
        return cosine_scores(features, self.means)

    @property
    def head_weights(self) -> int:
        return self.means.numel()
