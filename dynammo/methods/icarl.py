"""iCaRL: features learnt with distillation on exemplars, classes told by the nearest mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dynammo.config import Config
from dynammo.heads.linear import Scores
from dynammo.methods.base import About, Style, Task, TaskImages, Watch
from dynammo.methods.prototypes import cosine_scores
from dynammo.methods.training import Batch, TrainedNetwork
from dynammo.network.features import extract_features
from dynammo.state import State
from dynammo.training.loop import Epoch


class ICarl(TrainedNetwork):
    """Every output is a yes or no of its own: the truth for new classes, for old ones what the
    network before the task says. Predicted is the class whose exemplars' mean is nearest.

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
    """

    about = About(
        meaning="distillation on exemplars; the class with the nearest mean of them (iCaRL)",
        source="arXiv 1611.07725",
        memory="exemplars",
        style=Style("#009E73", "o"),
    )

    def __init__(
        self, config: Config, weights: State | None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(config, weights, device)
        self.means = torch.zeros(0, self.feature_size)

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        teacher = self.frozen_copy()
        self.grow(task)

        def loss(batch: Batch) -> tuple[Tensor, Tensor]:
            logits = self.logits(batch.images)
            old = teacher(batch.images).sigmoid() if task.first else logits[:, :0]
            return yes_or_no(logits, batch.labels, old), logits

        return self.fit(task.new.with_(task.old), loss, task, watch)

    def remember(self, memory: TaskImages) -> None:
        features = functional.normalize(extract_features(self.network, memory.images), dim=1)
        self.means = torch.stack(
            [features[memory.labels == label].mean(0) for label in range(len(self.bias))]
        )

    def scores(self, features: Tensor) -> Scores:
        return cosine_scores(features, self.means)

    @property
    def head_weights(self) -> int:
        return self.means.numel()

    def state(self) -> State:
        return {**super().state(), "means": self.means}

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self.means = state["means"]


def yes_or_no(logits: Tensor, labels: Tensor, old: Tensor) -> Tensor:
    """Binary cross-entropy, summed over the classes and averaged over the batch.

    Args:
        logits: (B, C).
        labels: (B,) in 0..C - 1.
        old: (B, K), the probabilities that stand for the truth of the first K classes.
    """
    targets = functional.one_hot(labels, logits.shape[1]).to(logits)
    targets[:, : old.shape[1]] = old
    sums = functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return sums / len(labels)
