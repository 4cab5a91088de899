"""Elastic weight consolidation: weights that mattered are held where they were."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynammo.config import Config
from dynammo.methods.base import About, Style, Task, TaskImages, Watch
from dynammo.methods.training import Batch, TrainedNetwork, part
from dynammo.state import State
from dynammo.training.loop import Epoch


class ElasticWeightConsolidation(TrainedNetwork):
    """Minimises CE + strength / 2 * sum_i F_i (w_i - w*_i)^2.

    w* are the weights after the task before, F the diagonal of the Fisher information, summed over
    the tasks (online EWC, with the earlier sum multiplied by `decay`).

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        strength: lambda.
        decay: gamma of online EWC (arXiv 1805.06370).
        samples: images of the task that F is measured on, at most.
    """

    about = About(
        meaning="weights that mattered to old tasks are held where they were (online EWC)",
        source="arXiv 1612.00796",
        memory="none",
        style=Style("#CC79A7", "^"),
    )

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        strength: float = 100.0,
        decay: float = 1.0,
        samples: int = 256,
    ) -> None:
        super().__init__(config, weights, device)
        self.strength, self.decay, self.samples = strength, decay, samples
        self.fisher: State = {}

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        anchor = {name: value.detach().clone() for name, value in self._named().items()}
        self.grow(task)

        def loss(batch: Batch) -> tuple[Tensor, Tensor]:
            value, logits = self.cross_entropy(batch)
            if task.first:
                value = value + self.strength / 2 * penalty(self._named(), anchor, self.fisher)
            return value, logits

        history = self.fit(task.new, loss, task, watch)
        new = self.measure(task.new, self.seed("fisher", task.number))
        for name, old in self.fisher.items():
            known_part(new[name], old).add_(self.decay * old)
        self.fisher = new
        return history

    def measure(self, data: TaskImages, seed: int) -> State:
        """F_i = mean over images of (d log p(y | x) / d w_i)^2, with y drawn from the model's p.

        Args:
            data: at most `samples` of them are taken.
            seed: of the choice of images and of y.
        """
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(data.labels), generator=generator)[: self.samples]
        named = self._named()
        fisher = {name: torch.zeros_like(value) for name, value in named.items()}
        for image in data.images[chosen]:
            logged = self.logits(image.unsqueeze(0).to(self.device)).log_softmax(1)[0]
            drawn = torch.multinomial(logged.detach().exp().cpu(), 1, generator=generator)
            gradients = torch.autograd.grad(logged[int(drawn)], list(named.values()))
            for total, gradient in zip(fisher.values(), gradients, strict=True):
                total += gradient.square() / len(chosen)
        return fisher

    def _named(self) -> dict[str, nn.Parameter]:
        return {
            **dict(self.network.named_parameters()),
            "weight": self.weight,
            "bias": self.bias,
        }

    def state(self) -> State:
        return {**super().state(), **{f"fisher.{k}": v.cpu() for k, v in self.fisher.items()}}

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self.fisher = {k: v.to(self.device) for k, v in part(state, "fisher").items()}


def known_part(value: Tensor, old: Tensor) -> Tensor:
    """The first rows of a weight, as many as it had before the head grew; a view."""
    return value if value.shape == old.shape else value[: len(old)]


def penalty(weights: dict[str, nn.Parameter], anchor: State, fisher: State) -> Tensor:
    """sum_i F_i (w_i - w*_i)^2; rows of the head that are new have no w* and count nothing."""
    terms = [
        (fisher[name] * (known_part(weights[name], old) - old).square()).sum()
        for name, old in anchor.items()
    ]
    return torch.stack(terms).sum()
