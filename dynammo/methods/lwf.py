"""Learning without forgetting: the network before the task teaches the old classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dynammo.config import Config
from dynammo.methods.base import About, Style, Task, Watch
from dynammo.methods.training import Batch, TrainedNetwork, distillation
from dynammo.state import State
from dynammo.training.loop import Epoch


class LearningWithoutForgetting(TrainedNetwork):
    """Minimises CE over the new classes' outputs + strength * distillation of the old ones.

    No image of an old class is seen: on the new images the old outputs are kept near those of the
    network before the task.

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        strength: lambda_o of the paper.
        temperature: T of the paper.
    """

    about = About(
        meaning="the network before the task teaches the old outputs on new images (LwF)",
        source="arXiv 1606.09282",
        memory="none",
        style=Style("#CC79A7", "v"),
    )

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        strength: float = 1.0,
        temperature: float = 2.0,
    ) -> None:
        super().__init__(config, weights, device)
        self.strength, self.temperature = strength, temperature

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        teacher = self.frozen_copy()
        self.grow(task)

        def loss(batch: Batch) -> tuple[Tensor, Tensor]:
            logits = self.logits(batch.images)
            old, new = logits[:, : task.first], logits[:, task.first :]
            value = functional.cross_entropy(new, batch.labels - task.first)
            if task.first:
                taught = distillation(old, teacher(batch.images), self.temperature)
                value = value + self.strength * taught
            return value, logits

        return self.fit(task.new, loss, task, watch)
