"""ACMap: adapters averaged into one, and prototypes carried over to its features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynammo.config import Config
from dynammo.heads.linear import Scores
from dynammo.merging.average import average
from dynammo.methods.base import About, Method, Style, Task, Watch
from dynammo.methods.prototypes import cosine_scores
from dynammo.methods.training import part
from dynammo.network.features import extract_features
from dynammo.network.folding import deployed_network
from dynammo.network.network import build_network
from dynammo.state import State
from dynammo.training.loop import Epoch, train_adapter


class ACMap(Method):
    """An adapter a task, all started from the first one's weights and averaged; a class is the mean
    of its features under the average of its time.

    An old task's means are moved by what the average has changed since, as far as the newest
    task's images show it: by the centroid of their class means under today's average, minus that
    under the old one.

    Args:
        config: as of every method; its adapters are those of the section adapter.
        weights: likewise.
        device: likewise.
    """

    about = About(
        meaning="adapters averaged into one; class means carried over without images (ACMap)",
        source="arXiv 2412.18219",
        memory="none",
        style=Style("#56B4E9", "o"),
    )
    sections = ("train", "adapter")

    def __init__(
        self, config: Config, weights: State | None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(config, weights, device)
        self.network = self.adapted = build_network(
            config.backbone, weights, config.image.form, config.adapter, self.seed("adapter", 1)
        ).to(self.device)
        self.adapters: list[State] = []  # one a task
        self.sources: list[Tensor] = []  # (C_t, D): the task's class means under its own average
        self.means = torch.zeros(0, self.feature_size)  # (C, D): all, carried over

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        if self.adapters:
            self.adapted.load_adapter_state(self.adapters[0])
        trained = train_adapter(
            self.adapted,
            task.new.images,
            task.new.labels - task.first,
            task.classes - task.first,
            self.config.train,
            self.seed("learn", task.number),
            *watch,
        )
        self.adapters.append(trained.adapter)
        under = [self._class_means(task, count) for count in range(1, task.number + 1)]
        now = under[-1].mean(0)
        moved = [
            source + now - then.mean(0)
            for source, then in zip(self.sources, under[:-1], strict=True)
        ]
        self.sources.append(under[-1])
        self.means = torch.cat([*moved, under[-1]])
        return trained.history

    def _class_means(self, task: Task, count: int) -> Tensor:
        """(C_t, D): of the task's classes under the average of the first adapters, which stays."""
        self.adapted.load_adapter_state(average(self.adapters[:count]))
        features = extract_features(self.adapted, task.new.images)
        new = range(task.first, task.classes)
        return torch.stack([features[task.new.labels == label].mean(0) for label in new])

    def scores(self, features: Tensor) -> Scores:
        return cosine_scores(features, self.means)

    @property
    def head_weights(self) -> int:
        return self.means.numel()

    @property
    def deployed(self) -> nn.Module:
        config = self.config
        return deployed_network(config.backbone, self.weights, config.image.form, config.adapter)

    def state(self) -> State:
        return {
            "means": self.means,
            **{f"source.{t}": source for t, source in enumerate(self.sources)},
            **{
                f"adapter.{t}.{name}": value
                for t, adapter in enumerate(self.adapters)
                for name, value in adapter.items()
            },
        }

    def load_state(self, state: State) -> None:
        self.means = state["means"]
        sources = part(state, "source")
        self.sources = [sources[str(t)] for t in range(len(sources))]
        self.adapters = [part(state, f"adapter.{t}") for t in range(len(sources))]
        self.adapted.load_adapter_state(average(self.adapters))
