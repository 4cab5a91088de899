"""Experience replay."""

from __future__ import annotations

import torch
from torch import Tensor

from dynammo.methods.base import About, Style, Task, Watch
from dynammo.methods.training import Batch, Replay, TrainedNetwork
from dynammo.training.loop import Epoch


class ExperienceReplay(TrainedNetwork):
    """Every step sees a batch of new images and a batch of exemplars of the same size.

    The loss is the cross-entropy over all classes seen, mean over both batches.
    """

    about = About(
        meaning="the whole network, every batch of new images with one of exemplars (replay)",
        source="arXiv 1902.10486",
        memory="exemplars",
        style=Style("#E69F00", "o"),
    )

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        self.grow(task)
        if not task.first:
            return self.fit(task.new, self.cross_entropy, task, watch)
        replay = Replay(self, task.old, self.seed("replay", task.number))

        def loss(batch: Batch) -> tuple[Tensor, Tensor]:
            old, _ = replay.draw(len(batch.labels))
            both = Batch(
                torch.cat([batch.images, old.images]), torch.cat([batch.labels, old.labels])
            )
            value, logits = self.cross_entropy(both)
            return value, logits[: len(batch.labels)]

        return self.fit(task.new, loss, task, watch)
