"""After DFLM: an expanding network with a von Mises-Fisher head, matched to its features."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynammo.config import Config
from dynammo.heads.linear import Scores, unified_scores
from dynammo.methods.base import About, Style, Task, TaskImages, Watch
from dynammo.methods.cosine import imprinted
from dynammo.methods.der import DynamicExpansion
from dynammo.methods.training import Batch
from dynammo.state import State
from dynammo.training.loop import Epoch

KAPPA = 16.0  # of every class before training


class FeatureMatching(DynamicExpansion):
    """Each task trains a new backbone (`DynamicExpansion`); a class is a von Mises-Fisher
    distribution of the features' directions z, with mean mu_c and concentration k_c >= 1:

        z_c = k_c mu_c^T z + log C(k_c) - log C(16) [+ log n_c, in training],

    C(k) its normalising constant in so many dimensions and n_c the training images of the class.
    Minimises, on new images and exemplars,

        CE + auxiliary CE_aux + matching (L_match + L_apart).

    L_match draws each class's mu towards the batch's features, L_apart draws the classes'
    distributions apart. Half of the batches are mixed, x <- l x + (1 - l) x' with l ~ U(0, 1), and
    the losses likewise; x' is drawn with weights n_c^-e, e rising from 0 to 1 over the training:
    ever more from the memory.

    Published, in the abstract alone: expansion, mixing that class weights and time steer towards
    the memory, a von Mises-Fisher classifier, a matching loss between the distributions of features
    and classifier. The classifier and both of its losses are those of a classifier published for
    long-tailed classes (ECCV 2022); the mixing, and how the parts are put together, is our
    reconstruction. There is no balancing of the head afterwards: n_c stands for it.

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        auxiliary: weight of the loss of the new backbone's own classifier, as of `der`.
        matching: weight of the two losses of the distributions.
        mixed: share of the batches that are mixed.
    """

    about = About(
        meaning="a new backbone a task, von Mises-Fisher head, matched, mixed (after DFLM)",
        source="arXiv 2405.08533",
        memory="exemplars",
        style=Style("#8B6C00", "X"),
    )
    sections = ("train",)

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        auxiliary: float = 1.0,
        matching: float = 0.2,
        mixed: float = 0.5,
    ) -> None:
        super().__init__(config, weights, device, auxiliary)
        if not 0 <= mixed <= 1:
            raise ValueError(f"mixed must be from 0 to 1, got {mixed}")
        self.matching, self.mixed = matching, mixed

    def start_head(self) -> None:
        self.use_head({"weight": torch.zeros(0, self.feature_size), "kappa": torch.zeros(0)})

    def grow(self, task: Task) -> None:
        """Give the head the task's classes, where their images are, and old ones new columns: those
        of the last backbone, which the new one starts from.
        """
        head = self.head()
        weight, kappa = head["weight"], head["kappa"]
        known = weight.shape[1]
        weight = torch.cat([weight, weight[:, 2 * known - self.feature_size :]], dim=1)
        new = imprinted(self.network, task.new)
        self.use_head(
            {
                "weight": torch.cat([weight, new]),
                "kappa": torch.cat([kappa, torch.full((len(new),), KAPPA)]),
            }
        )

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        newest, extra = self.expand(task)
        data = task.new.with_(task.old)
        counts = data.labels.bincount(minlength=task.classes)
        prior = counts.double().log().float().to(self.device)
        generator = torch.Generator().manual_seed(self.seed("mixing", task.number))
        settings, steps = self.config.train, 0
        expected = settings.epochs * math.ceil(len(data.labels) / settings.batch_size)

        def of(features: Tensor, labels: Tensor) -> Tensor:
            z = functional.normalize(features, dim=1)
            logits = self.outputs(features, self.head_parameters()) + prior
            value = functional.cross_entropy(logits, labels)
            if task.first:
                own = extra(features[:, -self.single :]).float()
                old = (labels - task.first + 1).clamp(min=0)
                value = value + self.auxiliary * functional.cross_entropy(own, old)
            directions, kappa = functional.normalize(self.weight, dim=1), self.kappa.clamp(min=1)
            apart = overlap(directions, kappa)
            return value + self.matching * (mismatch(z, labels, directions, kappa) + apart)

        def loss(batch: Batch) -> tuple[Tensor, Tensor]:
            nonlocal steps
            weights = partner_weights(data.labels, counts, steps / expected)
            steps += 1
            if torch.rand((), generator=generator) < self.mixed:
                size = len(batch.labels)
                chosen = torch.multinomial(weights, size, replacement=True, generator=generator)
                other = self.batch(data, chosen, torch.zeros_like(chosen))
                share = float(torch.rand((), generator=generator))
                mixed = share * batch.images.float() + (1 - share) * other.images.float()
                features = self.network(mixed).float()
                value = share * of(features, batch.labels)
                value = value + (1 - share) * of(features, other.labels)
            else:
                features = self.network(batch.images).float()
                value = of(features, batch.labels)
            return value, self.outputs(features, self.head_parameters())

        parameters = [*newest.parameters(), *extra.parameters()]
        return self.fit(data, loss, task, watch, parameters)

    def remember(self, memory: TaskImages) -> None:
        """Nothing: the head is not made anew."""

    def linear_head(self, head: Mapping[str, Tensor]) -> State:
        """Weight (C, D) and bias (C,) of the logits, on directions."""
        kappa = head["kappa"].clamp(min=1)
        return {
            "weight": kappa.unsqueeze(1) * functional.normalize(head["weight"], dim=1),
            "bias": log_constant(kappa, self.feature_size),
        }

    def outputs(self, features: Tensor, head: Mapping[str, Tensor]) -> Tensor:
        z = functional.normalize(features.float(), dim=1)
        return functional.linear(z, **self.linear_head(head))

    def scores(self, features: Tensor) -> Scores:
        return unified_scores(functional.normalize(features, dim=1), self.linear_head(self.head()))

    def head_parameters(self) -> dict[str, nn.Parameter]:
        return {"weight": self.weight, "kappa": self.kappa}

    def use_head(self, head: State) -> None:
        self.weight = nn.Parameter(head["weight"].to(self.device))
        self.kappa = nn.Parameter(head["kappa"].to(self.device))


def _terms(kappa: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """The m = 0, 1, ... and the logarithms (C, M) of the terms of the series

        I_v(k) = (k / 2)^v / Gamma(v + 1) * sum_m (k^2 / 4)^m Gamma(v + 1) / (m! Gamma(v + 1 + m)),

    v = d / 2 - 1. The largest has m <= k / 2; so many are taken that the rest is below rounding.
    """
    m = torch.arange(int(kappa.detach().max()) + 60, dtype=torch.float64, device=kappa.device)
    v = torch.tensor(dimensions / 2 - 1, dtype=torch.float64)
    constant = (m + 1).lgamma() + (v + 1 + m).lgamma() - (v + 1).lgamma()
    return m, 2 * m * (kappa.double() / 2).log().unsqueeze(1) - constant


def log_constant(kappa: Tensor, dimensions: int) -> Tensor:
    """The constant log C(k) - log C(16), C(k) = k^v / ((2 pi)^(d / 2) I_v(k)), v = d / 2 - 1.

    From the series of the Bessel function I_v, which itself overflows and underflows in so many
    dimensions.

    Args:
        kappa: k (C,), above 0.
        dimensions: d.
    """
    usual = torch.full_like(kappa, KAPPA)
    sums = [_terms(k, dimensions)[1].logsumexp(1) for k in (usual, kappa)]
    return (sums[0] - sums[1]).to(kappa.dtype)


def mean_length(kappa: Tensor, dimensions: int) -> Tensor:
    """A(k) = I_{d/2}(k) / I_{d/2-1}(k) = -d log C / d k: the length of the mean direction, in 0..1.

    Args:
        kappa: k (C,), above 0.
        dimensions: d.
    """
    m, terms = _terms(kappa, dimensions)
    return ((terms.softmax(1) @ m) * 2 / kappa.double()).to(kappa.dtype)


def mismatch(z: Tensor, labels: Tensor, directions: Tensor, kappa: Tensor) -> Tensor:
    """L_match: mean over the batch's classes of 1 - 1 / (1 + A(k_c) k_c (1 - mu_c^T m_c)), m_c the
    mean of the class's z at unit length. 0 where they agree.

    Args:
        z: (B, D) at unit length.
        labels: (B,).
        directions: mu (C, D) at unit length.
        kappa: k (C,).
    """
    present = labels.unique()
    means = torch.stack([z[labels == label].mean(0) for label in present])
    cosines = (directions[present] * functional.normalize(means, dim=1)).sum(1)
    k = kappa[present]
    return (1 - 1 / (1 + mean_length(k, z.shape[1]) * k * (1 - cosines))).mean()


def overlap(directions: Tensor, kappa: Tensor) -> Tensor:
    """L_apart: mean over ordered pairs of classes of 1 / (1 + KL(i || j)), with

        KL(i || j) = A(k_i) (k_i - k_j mu_i^T mu_j) + log C(k_i) - log C(k_j).

    1 where all classes are the same; 0 for a lone class.

    Args:
        directions: mu (C, D) at unit length.
        kappa: k (C,).
    """
    count, dimensions = directions.shape
    if count == 1:
        return 0 * kappa.sum()
    constant = log_constant(kappa, dimensions)
    crossed = kappa.unsqueeze(1) - kappa * (directions @ directions.T)
    divergence = mean_length(kappa, dimensions).unsqueeze(1) * crossed
    divergence = divergence + constant.unsqueeze(1) - constant
    pairs = ~torch.eye(count, dtype=torch.bool, device=kappa.device)
    return (1 / (1 + divergence[pairs])).mean()


def partner_weights(labels: Tensor, counts: Tensor, exponent: float) -> Tensor:
    """What each image (N,) is drawn with: n_c^-exponent, n_c (C,) images of its class.

    At 0 all images are the same, at 1 all classes.
    """
    return counts.double()[labels].pow(-exponent)
