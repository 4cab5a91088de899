"""Nearest class mean on the frozen backbone."""

from __future__ import annotations

import torch
from torch import Tensor

from dynammo.config import Config
from dynammo.heads.linear import Scores
from dynammo.methods.base import About, Method, Style, Task, Watch
from dynammo.methods.prototypes import cosine_scores
from dynammo.network.features import extract_features
from dynammo.state import State
from dynammo.training.loop import Epoch


class NearestClassMean(Method):
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
    bare = True

    def __init__(
        self, config: Config, weights: State | None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(config, weights, device)
        self.means = torch.zeros(0, self.feature_size)

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        features = extract_features(self.network, task.new.images, progress=watch.progress)
        new = range(task.first, task.classes)
        means = [features[task.new.labels == label].mean(0) for label in new]
        self.means = torch.cat([self.means, torch.stack(means)])
        return []

    def scores(self, features: Tensor) -> Scores:
        return cosine_scores(features, self.means)

    @property
    def head_weights(self) -> int:
        return self.means.numel()

    def state(self) -> State:
        return {"means": self.means}

    def load_state(self, state: State) -> None:
        self.means = state["means"]
