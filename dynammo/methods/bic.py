"""BiC: distillation on exemplars, then two numbers that undo the lean towards new classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynammo.config import Config
from dynammo.heads.linear import Scores, unified_scores
from dynammo.methods.base import About, Style, Task, TaskImages, Watch
from dynammo.methods.training import Batch, TrainedNetwork, distillation
from dynammo.network.features import extract_features
from dynammo.state import State
from dynammo.training.loop import Epoch


class BiasCorrection(TrainedNetwork):
    """Minimises l distillation + (1 - l) CE on new images and exemplars; l is the share of old
    classes. Then the logits of the new classes become

        a z_c + b,

    with the a and b of the least CE on images held out from training, as many of each class. The
    network before the task teaches with its own a and b.

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        held_out: share of the exemplars of a class, at least one; of each new class as many.
        temperature: T of the distillation.
        decay: of (a - 1)^2 + b^2, for images that are all told right have no least CE.
    """

    about = About(
        meaning="distillation on exemplars, then new outputs corrected on held-out images (BiC)",
        source="arXiv 1905.13260",
        memory="exemplars",
        style=Style("#882255", "s"),
    )

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        held_out: float = 0.1,
        temperature: float = 2.0,
        decay: float = 0.01,
    ) -> None:
        super().__init__(config, weights, device)
        if not 0 < held_out < 1 or decay <= 0:
            raise ValueError("held_out must be within 0 and 1, and decay above 0")
        self.held_out, self.temperature, self.decay = held_out, temperature, decay
        self.correction = torch.tensor([1.0, 0.0])  # a, b
        self.corrected_from = 0  # index of the newest task's first class

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        teacher = self.frozen_copy()
        self.grow(task)
        self.correction, self.corrected_from = torch.tensor([1.0, 0.0]), task.first
        if not task.first:
            return self.fit(task.new, self.cross_entropy, task, watch)
        trained, held = hold_out(task, self.held_out)
        share = task.first / task.classes

        def loss(batch: Batch) -> tuple[Tensor, Tensor]:
            logits = self.logits(batch.images)
            right = functional.cross_entropy(logits, batch.labels)
            taught = distillation(logits[:, : task.first], teacher(batch.images), self.temperature)
            return (1 - share) * right + share * taught, logits

        history = self.fit(trained, loss, task, watch)
        logits = functional.linear(extract_features(self.network, held.images), **self.head())
        self.correction = fit_correction(logits, held.labels, task.first, self.decay)
        return history

    def frozen_copy(self) -> Callable[[Tensor], Tensor]:
        """Likewise, corrected."""
        raw, first, correction = super().frozen_copy(), self.corrected_from, self.correction
        return lambda images: corrected(raw(images), first, correction)

    def scores(self, features: Tensor) -> Scores:
        head, first = self.head(), self.corrected_from
        scale, shift = self.correction
        weight, bias = head["weight"].clone(), head["bias"].clone()
        weight[first:] *= scale
        bias[first:] = scale * bias[first:] + shift
        return unified_scores(features, {"weight": weight, "bias": bias})

    def state(self) -> State:
        first = torch.tensor(self.corrected_from)
        return {**super().state(), "correction": self.correction, "corrected_from": first}

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self.correction = state["correction"]
        self.corrected_from = int(state["corrected_from"])


def corrected(logits: Tensor, first: int, correction: Tensor) -> Tensor:
    """Logits (B, C) with those of the classes from `first` on as a z + b; `correction` is a, b."""
    scale, shift = correction.to(logits)
    return torch.cat([logits[:, :first], scale * logits[:, first:] + shift], dim=1)


def fit_correction(logits: Tensor, labels: Tensor, first: int, decay: float) -> Tensor:
    """The a and b (2,) that minimise CE(corrected logits) + decay ((a - 1)^2 + b^2), which has one
    minimum.

    Args:
        logits: (N, C).
        labels: (N,).
        first: index of the first class that is corrected.
        decay: above 0.
    """
    start = torch.tensor([1.0, 0.0], dtype=torch.float64)
    found = nn.Parameter(start.clone())
    optimiser = torch.optim.LBFGS([found], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = functional.cross_entropy(corrected(logits.double(), first, found), labels)
        value = value + decay * (found - start).square().sum()
        value.backward()
        return value

    optimiser.step(closure)
    return found.detach().float()


def hold_out(task: Task, share: float) -> tuple[TaskImages, TaskImages]:
    """What is trained on, and what is held out: of each class as many, the last ones.

    Of exemplars the last are those that say least of their class. An old class of one exemplar is
    held out whole.

    Args:
        task: after the first.
        share: of the exemplars of the smallest old class, at least one image.
    """
    smallest = int(task.old.labels.bincount(minlength=task.first).min())
    count = max(1, round(share * smallest))
    together = task.new.with_(task.old)
    held = torch.zeros(len(together.labels), dtype=torch.bool)
    for label in together.labels.unique():
        held[(together.labels == label).nonzero().flatten()[-count:]] = True
    parts = [TaskImages(together.images[part], together.labels[part]) for part in (~held, held)]
    return parts[0], parts[1]
