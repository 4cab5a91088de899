"""The exemplars themselves as the classifier: nearest neighbours on the frozen backbone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dynammo.config import Config
from dynammo.heads.linear import Scores
from dynammo.methods.base import About, Method, Style, Task, TaskImages, Watch
from dynammo.methods.prototypes import similarity_scores
from dynammo.network.features import extract_features
from dynammo.state import State
from dynammo.training.loop import Epoch


class Neighbours(Method):
    """A class is as similar as its `count` most similar exemplars are on average (cosine).

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        count: neighbours of each class.
    """

    about = About(
        meaning="frozen backbone; the class with the most similar exemplars",
        source="baseline",
        memory="exemplars",
        style=Style("#8C510A", "X"),
    )
    bare = True  # the features are the bare backbone's: they are taken once

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        count: int = 1,
    ) -> None:
        super().__init__(config, weights, device)
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self.count = count
        self.kept = torch.zeros(0, self.feature_size)
        self.labels = torch.zeros(0, dtype=torch.int64)

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        return []  # nothing but the memory matters, and that is chosen afterwards

    def remember(self, memory: TaskImages) -> None:
        self.kept = normalize(extract_features(self.network, memory.images), dim=1)
        self.labels = memory.labels

    def scores(self, features: Tensor) -> Scores:
        cosines = normalize(features, dim=1) @ self.kept.T
        classes = [cosines[:, self.labels == label] for label in self.labels.unique()]
        best = [own.topk(min(self.count, own.shape[1])).values.mean(1) for own in classes]
        return similarity_scores(torch.stack(best, dim=1))

    @property
    def head_weights(self) -> int:
        return self.kept.numel()

    def state(self) -> State:
        return {"kept": self.kept, "labels": self.labels}

    def load_state(self, state: State) -> None:
        self.kept, self.labels = state["kept"], state["labels"]
