"""Dark experience replay ++: exemplars are replayed with the logits of their time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dynammo.config import Config
from dynammo.methods.base import About, Style, Task, TaskImages, Watch
from dynammo.methods.training import Batch, Replay, TrainedNetwork
from dynammo.network.features import extract_features
from dynammo.state import State
from dynammo.training.loop import Epoch


class DarkExperienceReplay(TrainedNetwork):
    """Minimises CE(new) + alpha mean (z - h(x))^2 + beta CE(x', y') with exemplars x and x'.

    z are the logits that the exemplar x had when it was chosen, over the classes known then; x and
    x' are drawn anew in every step, as many as there are new images.

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        alpha: weight of the logits; as in the paper's experiments on CIFAR-10 with 200 exemplars.
        beta: weight of the labels; likewise.
    """

    about = About(
        meaning="replay of exemplars with the logits that they had when they were chosen (DER++)",
        source="arXiv 2004.07211",
        memory="exemplars",
        style=Style("#E69F00", "s"),
    )

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        alpha: float = 0.1,
        beta: float = 0.5,
    ) -> None:
        super().__init__(config, weights, device)
        self.alpha, self.beta = alpha, beta
        # A row an exemplar, NaN where a class was not known when it was chosen; and its label.
        self.kept = torch.zeros(0, 0)
        self.kept_labels = torch.zeros(0, dtype=torch.int64)

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        self.grow(task)
        if not task.first:
            return self.fit(task.new, self.cross_entropy, task, watch)
        replay = Replay(self, task.old, self.seed("replay", task.number))

        def loss(batch: Batch) -> tuple[Tensor, Tensor]:
            value, logits = self.cross_entropy(batch)
            x, indices = replay.draw(len(batch.labels))
            now = self.logits(x.images)
            value = value + self.alpha * logit_error(now, self.kept[indices].to(self.device))
            x, _ = replay.draw(len(batch.labels))
            return value + self.beta * self.cross_entropy(x)[0], logits

        return self.fit(task.new, loss, task, watch)

    def remember(self, memory: TaskImages) -> None:
        features = extract_features(self.network, memory.images)
        head = self.head()
        now = functional.linear(features, head["weight"], head["bias"])
        kept = now.clone()
        for label in self.kept_labels.unique():
            # Of an old class the best are left: the first of those that were there.
            old, places = self.kept[self.kept_labels == label], memory.labels == label
            kept[places] = torch.nan
            kept[places, : old.shape[1]] = old[: int(places.sum())]
        self.kept, self.kept_labels = kept, memory.labels

    def state(self) -> State:
        return {**super().state(), "kept": self.kept, "kept_labels": self.kept_labels}

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self.kept, self.kept_labels = state["kept"], state["kept_labels"]


def logit_error(logits: Tensor, kept: Tensor) -> Tensor:
    """Mean squared difference over the classes that were known when the logits were kept.

    Args:
        logits: (B, C).
        kept: (B, K), K <= C, NaN where a class was unknown.
    """
    known = ~kept.isnan()
    return (logits[:, : kept.shape[1]] - kept)[known].square().mean()
