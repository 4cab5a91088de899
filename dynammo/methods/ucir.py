"""UCIR: a head of directions, features that keep theirs, and a margin around old classes."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor
from torch.nn import functional

from dynammo.config import Config
from dynammo.methods.base import About, Style, Task, Watch
from dynammo.methods.cosine import CosineNetwork
from dynammo.methods.training import Batch
from dynammo.state import State
from dynammo.training.loop import Epoch


class UnifiedRebalancing(CosineNetwork):
    """Minimises CE(s cos) + l L_G + L_mr on new images and exemplars, with

        L_G  = mean_i 1 - cos(f*_i, f_i),  l = strength sqrt(old classes / new classes),
        L_mr = mean over exemplars i and the `hardest` new classes k most like them of
               max(0, margin - cos(f_i, w_y) + cos(f_i, w_k)),

    f* being the features before the task. Rows of old classes stay as they are.

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        strength: lambda_base of the paper, 5 for CIFAR-100 and 10 for ImageNet.
        margin: m of the paper.
        hardest: K of the paper.
        scale: eta of the paper before training; it is learnt.
    """

    about = About(
        meaning="cosine head, features that keep their directions, margins for old classes (UCIR)",
        source="CVPR 2019",
        memory="exemplars",
        style=Style("#882255", "o"),
    )

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        strength: float = 5.0,
        margin: float = 0.5,
        hardest: int = 2,
        scale: float = 1.0,
    ) -> None:
        super().__init__(config, weights, device, scale)
        if hardest < 1:
            raise ValueError(f"hardest must be at least 1, got {hardest}")
        self.strength, self.margin, self.hardest = strength, margin, hardest

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        before = deepcopy(self.network).requires_grad_(False)
        self.grow(task)
        if not task.first:
            return self.fit(task.new, self.cross_entropy, task, watch)
        strength = self.strength * math.sqrt(task.first / (task.classes - task.first))
        old = self.weight.detach()[: task.first].clone()

        def loss(batch: Batch) -> tuple[Tensor, Tensor]:
            features = self.network(batch.images)
            weight = torch.cat([old, self.weight[task.first :]])
            cosines = self.similarities(features, {"weight": weight}).float()
            logits = self.scale * cosines
            value = functional.cross_entropy(logits, batch.labels)
            value = value + strength * turned(features, before(batch.images))
            kept = batch.labels < task.first
            ranking = margin_loss(
                cosines[kept], batch.labels[kept], task.first, self.margin, self.hardest
            )
            return value + ranking, logits

        return self.fit(task.new.with_(task.old), loss, task, watch)


def turned(features: Tensor, before: Tensor) -> Tensor:
    """Mean of 1 - cos over the batch of features (B, D)."""
    return (1 - functional.cosine_similarity(features, before, dim=1)).mean()


def margin_loss(cosines: Tensor, labels: Tensor, first: int, margin: float, hardest: int) -> Tensor:
    """How far the true old class is from being `margin` above the most similar new ones.

    Args:
        cosines: (B, C) of exemplars of old classes; none at all gives 0.
        labels: (B,), below `first`.
        first: index of the first new class.
        margin: of cosines.
        hardest: new classes, of which there may be fewer.
    """
    if not len(labels):
        return cosines.new_zeros(())
    right = cosines.gather(1, labels.unsqueeze(1))
    wrong = cosines[:, first:].topk(min(hardest, cosines.shape[1] - first)).values
    return (margin - right + wrong).relu().mean()
