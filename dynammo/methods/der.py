"""Dynamically expandable representation: a backbone a task, and their features side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynammo.config import Config
from dynammo.heads.linear import fine_tune_head, new_head
from dynammo.methods.base import About, Style, Task, TaskImages, Watch
from dynammo.methods.training import Batch, TrainedNetwork
from dynammo.network.features import augmented_views
from dynammo.network.network import build_network
from dynammo.state import State
from dynammo.training.loop import Epoch


class SideBySide(nn.Module):
    """(B, 3, H, W) -> the features of all networks, (B, n D)."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """All networks see the same images."""
        return torch.cat([network(images) for network in self.networks], dim=1)


class DynamicExpansion(TrainedNetwork):
    """Each task trains a new backbone; the earlier ones stay as they are.

    Minimises CE over all classes seen, on all backbones' features, + auxiliary * CE on the new
    backbone's features over the task's classes and one "old", on new images and exemplars. Then the
    head is made anew on the exemplars, of which there are as many of each class (`config.head`).

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        auxiliary: lambda_a of the paper.
    """

    about = About(
        meaning="a new backbone a task, all features side by side, one head over them (DER)",
        source="arXiv 2103.16788",
        memory="exemplars",
        style=Style("#8B6C00", "P"),
    )
    sections: ClassVar[tuple[str, ...]] = ("train", "head")

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        auxiliary: float = 1.0,
    ) -> None:
        super().__init__(config, weights, device)
        self.auxiliary = auxiliary
        self.single = self.feature_size  # D
        self.networks: list[nn.Module] = []  # one a task

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        newest, extra = self.expand(task)

        def loss(batch: Batch) -> tuple[Tensor, Tensor]:
            features = self.network(batch.images)
            logits = self.outputs(features, self.head_parameters()).float()
            value = functional.cross_entropy(logits, batch.labels)
            if task.first:
                own = extra(features[:, -self.single :]).float()
                value = value + self.auxiliary * functional.cross_entropy(
                    own, (batch.labels - task.first + 1).clamp(min=0)
                )
            return value, logits

        parameters = [*newest.parameters(), *extra.parameters()]
        return self.fit(task.new.with_(task.old), loss, task, watch, parameters)

    def expand(self, task: Task) -> tuple[nn.Module, nn.Module]:
        """Add a backbone, which alone is to be trained, and grow the head for the task.

        Returns:
            The backbone, which starts from the last one, and the auxiliary classifier of its
            features: old, and each of the task's classes.
        """
        newest = build_network(self.config.backbone, self.weights, self.config.image.form)
        if self.networks:
            newest.load_state_dict(self.networks[-1].state_dict())
        self._use([*self.networks, newest])
        self.grow(task)
        extra = nn.Linear(self.single, task.classes - task.first + 1)
        for parameter in extra.to(self.device).parameters():
            nn.init.zeros_(parameter)  # as `grow` does, and for its reason
        return newest.requires_grad_(True), extra

    def remember(self, memory: TaskImages) -> None:
        classes = len(self.bias)
        features = augmented_views(self.network, memory.images, self.config.head.flip)
        head = fine_tune_head(
            features,
            memory.labels,
            new_head(features.shape[-1], classes, self.seed("balanced head", classes)),
            self.config.head,
            self.seed("balance", classes),
        )
        self.use_head(head)

    def load_state(self, state: State) -> None:
        count = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("network."))
        form = self.config.image.form
        self._use([build_network(self.config.backbone, self.weights, form) for _ in range(count)])
        super().load_state(state)

    def _use(self, networks: list[nn.Module]) -> None:
        self.networks = networks
        self.network = SideBySide(networks).requires_grad_(False).to(self.device)
        self.feature_size = len(networks) * self.single
