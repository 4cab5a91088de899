"""What the methods have in common that sum features up and solve for a head."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from dynammo.config import Config
from dynammo.heads.linear import Scores, unified_scores
from dynammo.methods.base import Method, Task, Watch
from dynammo.network.features import extract_features
from dynammo.state import State
from dynammo.training.loop import Epoch


class Analytic(Method):
    """The frozen backbone, and whatever follows from the features of each task's images.

    `kept` names the tensors that learning changes.
    """

    bare = True
    kept: ClassVar[tuple[str, ...]]

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        features = extract_features(self.network, task.new.images, progress=watch.progress)
        self.take(features.double(), task)
        return []

    @abstractmethod
    def take(self, features: Tensor, task: Task) -> None:
        """Learn the task from the features (N, D) float64 of its images."""

    def state(self) -> State:
        return {name: getattr(self, name) for name in self.kept}

    def load_state(self, state: State) -> None:
        for name in self.kept:
            setattr(self, name, state[name])


class LinearAnalytic(Analytic):
    """One whose head is linear: `weight` (C, D) and `bias` (C,)."""

    def __init__(
        self, config: Config, weights: State | None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(config, weights, device)
        self.weight, self.bias = torch.zeros(0, self.feature_size), torch.zeros(0)

    def use_head(self, head: State) -> None:
        """Take `weight` and `bias`."""
        self.weight, self.bias = head["weight"], head["bias"]

    def scores(self, features: Tensor) -> Scores:
        return unified_scores(features, {"weight": self.weight, "bias": self.bias})

    @property
    def head_weights(self) -> int:
        return self.weight.numel()


def of_classes(features: Tensor, task: Task) -> list[Tensor]:
    """The features (N_c, D) of each of the task's classes."""
    return [features[task.new.labels == label] for label in range(task.first, task.classes)]
