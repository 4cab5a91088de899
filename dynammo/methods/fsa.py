"""First session adaptation: the network is trained on the first task, and stays; then LDA."""

from __future__ import annotations

import torch

from dynammo.config import Config
from dynammo.heads.discriminant import linear_discriminant
from dynammo.methods.analytic import of_classes
from dynammo.methods.base import About, Style, Task, Watch
from dynammo.methods.lda import no_classes, with_classes
from dynammo.methods.training import TrainedNetwork
from dynammo.network.features import extract_features
from dynammo.state import State
from dynammo.training.loop import Epoch


class FirstSessionAdaptation(TrainedNetwork):
    """The whole network is trained on the first task's images, with a linear head of its own that
    is then thrown away; the head is that of `lda`, on the features of the trained network.

    `no_images` is the same idea with linear adapters in place of the whole network.

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        shrinkage: as of `lda`.
    """

    about = About(
        meaning="the network trained on the first task alone, then discriminant analysis (FSA)",
        source="arXiv 2303.13199",
        memory="none",
        style=Style("#8B6C00", "s"),
    )

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        shrinkage: float | None = None,
    ) -> None:
        super().__init__(config, weights, device)
        self.shrinkage = shrinkage
        self.means, self.covariance = no_classes(self.feature_size, shrinkage)

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        history: list[Epoch] = []
        if task.number == 1:
            self.grow(task)
            history = self.fit(task.new, self.cross_entropy, task, watch)
        features = extract_features(self.network, task.new.images).double()
        self.means, self.covariance = with_classes(
            self.means, self.covariance, of_classes(features, task), self.shrinkage
        )
        self.use_head(linear_discriminant(self.means, self.covariance))
        return history

    def state(self) -> State:
        return {**super().state(), "means": self.means, "covariance": self.covariance}

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self.means, self.covariance = state["means"], state["covariance"]
