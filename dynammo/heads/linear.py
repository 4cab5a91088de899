"""Linear heads on frozen features: training them, and the two ways of predicting with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynammo.config import HeadConfig
from dynammo.heads.scaling import head_features
from dynammo.state import State


class Scores(NamedTuple):
    """What a model says of N images over C seen classes.

    `predicted` (N,) class indices; `probabilities` (N, C); `confidence` (N,) probability of the
    predicted class; `knownness` (N,) high where the image looks like a class seen before.
    """

    predicted: Tensor
    probabilities: Tensor
    confidence: Tensor
    knownness: Tensor


def new_head(features: int, classes: int, seed: int) -> State:
    """A fresh linear layer's `weight` (C, D) and `bias` (C,), drawn as torch draws them, from
    `seed`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(features, classes).state_dict()


def fine_tune_head(
    features: Tensor,
    labels: Tensor,
    initial: State,
    config: HeadConfig,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
) -> State:
    """Stage 2: minimise the cross-entropy, or another loss, of a linear head on features that do
    not change.

    Every epoch visits each image once, in a random order, under a random one of its views.

    Args:
        features: (V, N, D), V augmentation views of N images of a class-balanced set.
        labels: (N,) class indices.
        initial: the head to start from: `weight` (C, D), `bias` (C,).
        config: epochs, learning rate (Adam), batch size.
        seed: of the order and the views.
        progress: called with (epochs done, epochs).
        loss: of logits (B, C) and labels (B,).

    Returns:
        The trained head.

    Source: arXiv 2404.14099 (balanced fine-tuning); Adam, 1e-3.
    """
    views, count, _ = features.shape
    weight = nn.Parameter(initial["weight"].clone())
    bias = nn.Parameter(initial["bias"].clone())
    optimiser = torch.optim.Adam([weight, bias], lr=config.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(config.epochs):
        order = torch.randperm(count, generator=generator)
        view = torch.randint(views, (count,), generator=generator)
        for batch in order.split(config.batch_size):
            logits = functional.linear(features[view[batch], batch], weight, bias)
            optimiser.zero_grad()
            loss(logits, labels[batch]).backward()
            optimiser.step()
        if progress is not None:
            progress(epoch + 1, config.epochs)
    return {"weight": weight.detach(), "bias": bias.detach()}


def unified_scores(features: Tensor, head: State) -> Scores:
    """One head over all seen classes: softmax, the largest wins.

    Args:
        features: (N, D).
        head: `weight` (C, D), `bias` (C,), and `power` () if it takes normalised features.
    """
    features = head_features(features, head)
    logits = functional.linear(features, head["weight"], head["bias"])
    probabilities = logits.double().softmax(1)
    confidence, predicted = probabilities.max(1)
    return Scores(predicted, probabilities, confidence, confidence)


def least_others_scores(features: Sequence[Tensor], heads: Sequence[State]) -> Scores:
    """The unmerged model: the task is the one whose "others" output is least probable.

    Head k has |C_k| + 1 outputs, the last one "others". With p_k = softmax(head_k(features_k)) the
    task is argmin_k p_k[others] (the earliest, if equal) and the class the most probable one of
    that task. `probabilities` holds p_k[c] for every class (rows need not sum to 1) and `knownness`
    is 1 - min_k p_k[others].

    Args:
        features: n tensors (N, D), of the same images under each task's adapter.
        heads: n heads.

    Source: arXiv 2304.09042 (ACL).
    """
    tasks = [
        functional.linear(f, head["weight"], head["bias"]).double().softmax(1)
        for f, head in zip(features, heads, strict=True)
    ]
    others = torch.stack([p[:, -1] for p in tasks], dim=1)
    least, task = others.min(1)
    probabilities = torch.cat([p[:, :-1] for p in tasks], dim=1)
    owner = torch.cat([torch.full((p.shape[1] - 1,), k) for k, p in enumerate(tasks)])
    mine = owner.unsqueeze(0) == task.unsqueeze(1)
    confidence, predicted = probabilities.masked_fill(~mine, -1.0).max(1)
    return Scores(predicted, probabilities, confidence, 1 - least)


def task_labels(labels: Tensor, first: int, classes: int) -> Tensor:
    """Class indices as one task's head counts them: 0.. for its own classes, `classes` for others.

    Args:
        labels: (N,) indices in order of arrival.
        first: index of the task's first class.
        classes: number of the task's classes.
    """
    own = labels - first
    return torch.where((own >= 0) & (own < classes), own, classes)
