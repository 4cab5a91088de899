"""MECIL: smaller pictures as exemplars, so that the same bytes hold more of them."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from dynammo.config import Config
from dynammo.heads.linear import fine_tune_head
from dynammo.memory.herding import herd, quota
from dynammo.methods.base import About, Style, Task, TaskImages, Watch
from dynammo.methods.icarl import yes_or_no
from dynammo.methods.training import Batch, TrainedNetwork
from dynammo.network.features import augmented_views, extract_features
from dynammo.state import State
from dynammo.training.loop import Epoch


class LowFidelity(TrainedNetwork):
    """Old classes are remembered in low fidelity: images x~ of fewer pixels, as many of a class as
    have the bytes of the class's share of the memory, herded on the features of x~.

    Every output is a yes or no of its own: the truth for new classes, for old ones what the network
    before the task says. It is trained on pairs (duplets), mirrored alike: x and its x~ of new
    classes, x~ twice of old ones. From the second task on the head is then trained alone, on the x~
    of all classes, as many of each, with their true labels (classifier adaptation; `config.head`).

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        reduction: r, how many times fewer pixels x~ has.
    """

    about = About(
        meaning="more exemplars of fewer pixels in the same bytes, learnt in pairs (MECIL)",
        source="arXiv 2008.01411",
        memory="own",
        style=Style("#009E73", "v"),
    )
    sections: ClassVar[tuple[str, ...]] = ("train", "head", "memory")

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        reduction: float = 3.0,
    ) -> None:
        super().__init__(config, weights, device)
        if not 1 <= reduction <= config.image.size**2:
            raise ValueError(f"reduction must be from 1 to the image's pixels, got {reduction}")
        if config.image.form.volumes:
            raise ValueError("it keeps pictures small, and image.slices says they are volumes")
        self.size = config.image.size
        self.side = math.floor(self.size / math.sqrt(reduction))
        self.kept = torch.zeros(0, 3, self.side, self.side, dtype=torch.uint8)
        self.labels = torch.zeros(0, dtype=torch.int64)

    def share(self, classes: int) -> int:
        """Exemplars of each class: those of the memory's bytes for a class of x."""
        return quota(self.config.memory, classes) * self.size**2 // self.side**2

    def low(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) uint8 -> x~ as they are kept, (N, 3, s, s) uint8."""
        small = functional.interpolate(
            images.float(), size=self.side, mode="bilinear", antialias=True
        )
        return small.round().clamp(0, 255).to(torch.uint8)

    def shown(self, kept: Tensor) -> Tensor:
        """x~ as the network sees them: (N, 3, s, s) uint8 -> (N, 3, S, S) uint8."""
        large = functional.interpolate(kept.float(), size=self.size, mode="bilinear")
        return large.round().clamp(0, 255).to(torch.uint8)

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        teacher = self.frozen_copy()
        self.grow(task)
        old = TaskImages(self.shown(self.kept), self.labels)

        def loss(batch: Batch) -> tuple[Tensor, Tensor]:
            new = (batch.labels >= task.first).view(-1, 1, 1, 1)
            twins = torch.where(new, self.shown(self.low(batch.images)), batch.images)
            logits = self.logits(torch.cat([batch.images, twins]))
            said = logits[:, :0]
            if task.first:
                said = teacher(torch.cat([batch.images, twins])).sigmoid()
            value = yes_or_no(logits, batch.labels.repeat(2), said)
            return value, logits[: len(batch.labels)]

        history = self.fit(task.new.with_(old), loss, task, watch)
        self.choose(task)
        if task.first:
            self.adapt(task.number)
        return history

    def choose(self, task: Task) -> None:
        """Herd the new classes' x~, and cut the old classes' to the new share."""
        count, kept = self.share(task.classes), []
        small = self.low(task.new.images)
        features = extract_features(self.network, self.shown(small))
        for label in range(task.classes):
            if label < task.first:
                kept.append(self.kept[self.labels == label][:count])
            else:
                own = task.new.labels == label
                kept.append(small[own][herd(features[own], count)])
        self.kept = torch.cat(kept)
        sizes = torch.tensor([len(part) for part in kept])
        self.labels = torch.arange(task.classes).repeat_interleave(sizes)

    def adapt(self, number: int) -> None:
        """Train the head alone, on all exemplars, with their true labels."""
        settings = self.config.head
        features = augmented_views(self.network, self.shown(self.kept), settings.flip)

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            return yes_or_no(logits, labels, logits[:, :0])

        seed = self.seed("adapt", number)
        head = fine_tune_head(features, self.labels, self.head(), settings, seed, loss=loss)
        self.use_head(head)

    def state(self) -> State:
        return {**super().state(), "kept": self.kept, "labels": self.labels}

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self.kept, self.labels = state["kept"], state["labels"]
