"""PODNet: what every stage computes is held, pooled; classes have several proxies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynammo.config import Config
from dynammo.methods.base import About, Style, Task, TaskImages, Watch
from dynammo.methods.cosine import CosineNetwork
from dynammo.methods.training import Batch
from dynammo.methods.ucir import turned
from dynammo.network.features import augmented_views
from dynammo.network.layouts import layout_of
from dynammo.network.stages import default_stages
from dynammo.state import State
from dynammo.training.loop import Epoch, fit


class PooledOutputs(CosineNetwork):
    """Minimises L_nca + l (spatial L_spatial + flat L_flat) on new images and exemplars.

    With the head's similarities y and its scale s (`CosineNetwork`)

        L_nca = mean_i max(0, -log exp(s (y_t - margin)) / sum_{c != t} exp(s y_c)),  t the truth;

    L_spatial holds the backbone's last stages where they were (`moved`), L_flat is
    1 - cos(f*, f), and l = sqrt(all classes / new classes). From the second task on the head is
    then trained alone, on the exemplars, as many of each class, for `balanced` further epochs.

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        proxies: K of a class.
        margin: delta of the paper.
        scale: eta of the paper before training; it is learnt.
        spatial: lambda_c of the paper, as for CIFAR-100.
        flat: lambda_f of the paper, likewise.
        balanced: epochs on the exemplars alone.
    """

    about = About(
        meaning="every stage's pooled maps are held where they were, proxies of classes (PODNet)",
        source="arXiv 2004.13513",
        memory="exemplars",
        style=Style("#882255", "^"),
    )

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        proxies: int = 10,
        margin: float = 0.6,
        scale: float = 1.0,
        spatial: float = 3.0,
        flat: float = 1.0,
        balanced: int = 20,
    ) -> None:
        super().__init__(config, weights, device, scale, proxies)
        if balanced < 0:
            raise ValueError(f"balanced must be at least 0, got {balanced}")
        self.margin, self.spatial, self.flat, self.balanced = margin, spatial, flat, balanced
        self.goes_on = False  # whether it has learnt more than one task

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        before = deepcopy(self.network).requires_grad_(False)
        self.grow(task)
        self.goes_on = task.first > 0
        strength = math.sqrt(task.classes / (task.classes - task.first))

        def loss(batch: Batch) -> tuple[Tensor, Tensor]:
            maps.clear()
            features = self.network(batch.images)
            logits = self.outputs(features, self.head_parameters()).float()
            value = nca(logits, batch.labels, self.margin * self.scale)
            if task.first:
                kept.clear()
                with torch.no_grad():
                    goal = before(batch.images)
                held = self.spatial * moved(maps, kept) + self.flat * turned(features, goal)
                value = value + strength * held
            return value, logits

        with recorded(self.network) as maps, recorded(before) as kept:
            return self.fit(task.new.with_(task.old), loss, task, watch)

    def remember(self, memory: TaskImages) -> None:
        if not (self.balanced and self.goes_on):
            return
        views = augmented_views(self.network, memory.images, self.config.train.flip)

        def loss(indices: Tensor, view: Tensor) -> tuple[Tensor, int]:
            labels = memory.labels[indices].to(self.device)
            features = views[view, indices].to(self.device)
            logits = self.outputs(features, self.head_parameters())
            value = nca(logits, labels, self.margin * self.scale)
            return value, int((logits.argmax(1) == labels).sum())

        rate = self.config.train.network_learning_rate / 2
        changes = {"epochs": self.balanced, "milestones": [], "network_learning_rate": rate}
        settings = self.config.train.model_copy(update=changes)
        seed = self.seed("balance", len(self.weight))
        head = list(self.head_parameters().values())
        fit(head, loss, len(memory.labels), settings, seed, rate="network_learning_rate")

    def state(self) -> State:
        return {**super().state(), "goes_on": torch.tensor(self.goes_on)}

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self.goes_on = bool(state["goes_on"])


@contextmanager
def recorded(network: nn.Module) -> Iterator[list[Tensor]]:
    """The maps (B, C, h, w) that the backbone's last stages give go into the list, until cleared.

    Args:
        network: of `build_network`, without adapters.
    """
    maps: list[Tensor] = []

    backbone = network.get_submodule("backbone")

    def note(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        maps.append(layout_of(backbone, output.shape, neighbours=True).as_map(output))

    stages = [backbone.get_submodule(stage[-1]) for stage in default_stages(backbone)]
    hooks = [stage.register_forward_hook(note) for stage in stages]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def nca(logits: Tensor, labels: Tensor, margin: Tensor | float) -> Tensor:
    """mean_i max(0, log sum_{c != t} exp z_c - (z_t - margin)), t the label of i.

    Args:
        logits: z (B, C). A lone class is never mistaken: 0.
        labels: (B,).
        margin: of logits.
    """
    if logits.shape[1] == 1:
        return 0 * logits.sum()
    truth = functional.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(truth, -torch.inf).logsumexp(1)
    return (others - logits[truth] + margin).relu().mean()


def moved(maps: list[Tensor], before: list[Tensor]) -> Tensor:
    """POD-spatial: how far the pooled maps are from those of the network before, mean over stages.

    Of a map x (B, C, h, w) the sums of x^2 over each row and over each column are one vector, at
    unit length; of every stage the mean over the batch of the distance between both networks'.
    """

    def pooled(x: Tensor) -> Tensor:
        energy = x.float().square()
        sums = torch.cat([energy.sum(3), energy.sum(2)], dim=2)
        return functional.normalize(sums.flatten(1), dim=1)

    distances = [
        (pooled(now) - pooled(then)).square().sum(1).clamp(min=1e-12).sqrt().mean()
        for now, then in zip(maps, before, strict=True)
    ]
    return torch.stack(distances).mean()
