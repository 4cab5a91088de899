"""The head that follows from class statistics: no training, and no image remembered."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from dynammo.config import HeadConfig
from dynammo.heads.base import Evidence
from dynammo.heads.scaling import power_normalise
from dynammo.heads.statistics import (
    ClassStatistics,
    every_fifth,
    measure_classes,
    remove_samples,
    shrunk_covariance,
)
from dynammo.state import State

HOTTEST = math.exp(6)  # temperature


class Discriminant:
    """Shrunk linear discriminant analysis of the class statistics (`discriminant_head`) of
    power-normalised features, its outputs divided by a temperature (`calibration_temperature`).
    """

    evidence: ClassVar[Literal["exemplars", "statistics"]] = "statistics"

    def __call__(self, evidence: Evidence, config: HeadConfig) -> State:
        """The head.

        Raises:
            ValueError: no statistics, or not the images of the newest task.
        """
        if evidence.statistics is None or evidence.new is None or evidence.new_labels is None:
            raise ValueError("the discriminant needs class statistics and the newest images")
        head = discriminant_head(evidence.statistics, config.shrinkage)
        new = power_normalise(evidence.new, config.power)
        temperature = calibration_temperature(
            evidence.statistics, new, evidence.new_labels, config.shrinkage
        )
        power = torch.tensor(config.power, dtype=torch.float64)
        return {**{name: value / temperature for name, value in head.items()}, "power": power}

    def again(
        self, head: State, before: ClassStatistics, now: ClassStatistics, config: HeadConfig
    ) -> State:
        """The head for statistics of which some were taken out, at the temperature it had.

        Args:
            head: made from `before`.
            before: statistics of C classes.
            now: of what is left of them.
            config: the rule's settings.
        """
        was = discriminant_head(before, config.shrinkage)["weight"].norm()
        # Centred once more: in learners of earlier versions it is not.
        scaled = (head["weight"] - head["weight"].mean(0)).norm()
        temperature = was / scaled if was > 0 else 1.0  # a single class has no weights
        made = discriminant_head(now, config.shrinkage)
        return {**head, **{name: value / temperature for name, value in made.items()}}


def discriminant_head(statistics: ClassStatistics, shrinkage: float) -> State:
    """Linear discriminant analysis of classes with the shrunk covariance

        S = (1 - s) Sigma + s mean(diag(Sigma)) I.

    Args:
        statistics: of C classes, D features; their pooling decides what Sigma is.
        shrinkage: s in (0, 1].

    Returns:
        See `linear_discriminant`.

    Source: Friedman 1989, regularised discriminant analysis. For classes that arrive one after
    another on a frozen network it is SLDA (arXiv 1909.01520), and the case of a common covariance
    of FeCAM (arXiv 2309.14062); here the statistics follow a network that changes.
    """
    return linear_discriminant(statistics.means, shrunk_covariance(statistics, shrinkage))


def linear_discriminant(means: Tensor, covariance: Tensor) -> State:
    """Linear discriminant analysis with equal priors, as a head: for the covariance S

        w_c = S^-1 mu_c,    b_c = -1/2 mu_c^T S^-1 mu_c,

    which is Bayes' rule for classes that are normal with a common covariance and equally frequent.
    It is centred: of w and of b their mean over the classes is taken away, which adds the same to
    all logits of an image, and no softmax sees. What all classes have in common is by far the
    larger part: with it, rounding to float32 changes probabilities.

    Args:
        means: (C, D) float64.
        covariance: S (D, D) float64, positive definite.

    Returns:
        `weight` (C, D) and `bias` (C,), float32; each sums to 0 over the classes.
    """
    centre = means.mean(0)
    weight = torch.linalg.solve(covariance, (means - centre).T).T
    # -1/2 mu_c^T S^-1 mu_c, up to the same number for all.
    bias = -0.5 * (weight * (means + centre)).sum(1)
    return {"weight": weight.float(), "bias": (bias - bias.mean()).float()}


def calibration_temperature(
    statistics: ClassStatistics, features: Tensor, labels: Tensor, shrinkage: float
) -> float:
    """The temperature T that makes softmax(logits / T) as right as it says it is.

    The discriminant is far too sure of itself: it was measured on the images that made it, in many
    dimensions. So every fifth of the newest images is left out of its class's statistics, and T
    minimises the cross-entropy of its class among all classes seen, each of the newest images'
    classes weighing the same. Predictions do not change.

    Args:
        statistics: of all C classes, the samples of `features` among theirs.
        features: (V, N, D), V views of the newest task's training images.
        labels: (N,) class indices.
        shrinkage: as for the head.

    Returns:
        T from 1 to HOTTEST: a few images that are all right are no reason to be surer. 1 where no
        class has five of them.

    Source: Guo 2017 (arXiv 1706.04599), temperature scaling.
    """
    held = every_fifth(labels)
    if not bool(held.any()):
        return 1.0
    owner = labels[held].unique().tolist()
    place = torch.searchsorted(torch.tensor(owner), labels[held])
    out = measure_classes(features[:, held], place, len(owner), statistics.pooling)
    reduced = remove_samples(statistics, out, owner)
    head = discriminant_head(reduced, shrinkage)
    logits = linear(features[0, held], head["weight"], head["bias"]).double()
    targets = labels[held]
    weights = 1 / torch.bincount(targets).double()[targets]

    def loss(log_temperature: float) -> float:
        losses = cross_entropy(logits / math.exp(log_temperature), targets, reduction="none")
        return float((weights * losses).sum())

    if loss(0.0) < 1e-6:  # nothing to learn from: any temperature would do
        return 1.0
    return math.exp(minimize_scalar(loss, bounds=(0, math.log(HOTTEST)), method="bounded").x)
