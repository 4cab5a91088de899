"""Weight aligning: distillation on exemplars, then the new classes' weights are made no larger."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynammo.config import Config
from dynammo.methods.base import About, Style, Task, Watch
from dynammo.methods.training import Batch, TrainedNetwork, distillation
from dynammo.state import State
from dynammo.training.loop import Epoch


class WeightAligning(TrainedNetwork):
    """Minimises (1 - l) CE + l distillation on new images and exemplars.

    l is the share of old classes.

    Afterwards the head's rows of the new classes are multiplied by the mean norm of the old rows
    over that of the new ones, as the many new images have made them longer.

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        temperature: T of the distillation.
    """

    about = About(
        meaning="distillation on exemplars, then new weights scaled to the old ones' length (WA)",
        source="arXiv 1911.07053",
        memory="exemplars",
        style=Style("#CC79A7", "s"),
    )

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        temperature: float = 2.0,
    ) -> None:
        super().__init__(config, weights, device)
        self.temperature = temperature

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        teacher = self.frozen_copy()
        self.grow(task)
        if not task.first:
            return self.fit(task.new, self.cross_entropy, task, watch)
        share = task.first / task.classes

        def loss(batch: Batch) -> tuple[Tensor, Tensor]:
            logits = self.logits(batch.images)
            right = functional.cross_entropy(logits, batch.labels)
            taught = distillation(logits[:, : task.first], teacher(batch.images), self.temperature)
            return (1 - share) * right + share * taught, logits

        history = self.fit(task.new.with_(task.old), loss, task, watch)
        self.weight = nn.Parameter(align(self.weight.detach(), task.first))
        return history


def align(weight: Tensor, first: int) -> Tensor:
    """Scale the new rows: w_new <- w_new * mean_old ||w|| / mean_new ||w||.

    Args:
        weight: (C, D).
        first: index of the first new row; from 1.
    """
    norms = weight.norm(dim=1)
    scale = norms[:first].mean() / norms[first:].mean()
    return torch.cat([weight[:first], scale * weight[first:]])
