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
from dynammo.network.features import count_views
from dynammo.state import State

HOTTEST = math.exp(6)  # temperature


class Discriminant:
    """Shrunk linear discriminant analysis of the class statistics (`discriminant_head`) of
    power-normalised features, its outputs divided by a temperature.

    That is the geometric mean of the temperatures of all tasks so far, each found on its own images
    (`calibration_temperature`) and weighing as many as were held out: the newest may have few. For
    its successor a head holds `temperatures` (2,): the sums of weighed logarithms and of weights.
    """

    evidence: ClassVar[Literal["exemplars", "statistics"]] = "statistics"

    def __call__(self, evidence: Evidence, config: HeadConfig) -> State:
        """The head.

        Raises:
            ValueError: no statistics, or not the images of the newest task.
        """
        if evidence.statistics is None or evidence.new is None or evidence.new_labels is None:
            raise ValueError("the discriminant needs class statistics and the newest images")
        head = discriminant_head(evidence.statistics, config)
        new = power_normalise(evidence.new, config.power)
        found = calibration_temperature(evidence.statistics, new, evidence.new_labels, config)
        temperatures = weighed_temperature(found, int(every_fifth(evidence.new_labels).sum()))
        if evidence.before is not None and "temperatures" in evidence.before:
            temperatures += evidence.before["temperatures"]
        temperature = mean_temperature(temperatures)
        return {
            **{name: value / temperature for name, value in head.items()},
            "power": torch.tensor(config.power, dtype=torch.float64),
            "temperatures": temperatures,
        }

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
        was = discriminant_head(before, config)["weight"].norm()
        # Centred once more: in learners of earlier versions it is not.
        scaled = (head["weight"] - head["weight"].mean(0)).norm()
        temperature = was / scaled if was > 0 else 1.0  # a single class has no weights
        made = discriminant_head(now, config)
        return {**head, **{name: value / temperature for name, value in made.items()}}


def discriminant_head(statistics: ClassStatistics, config: HeadConfig) -> State:
    """Linear discriminant analysis of classes with the shrunk covariance

        S = (1 - s) Sigma + s mean(diag(Sigma)) I

    and means drawn to one another as far as chance put them apart (`estimated_means`).

    Args:
        statistics: of C classes, D features; their pooling decides what Sigma is.
        config: its shrinkage s, and the views of an image, each of which is a sample.

    Returns:
        See `linear_discriminant`.

    Source: Friedman 1989, regularised discriminant analysis. For classes that arrive one after
    another on a frozen network it is SLDA (arXiv 1909.01520), and the case of a common covariance
    of FeCAM (arXiv 2309.14062); here the statistics follow a network that changes.
    """
    covariance = shrunk_covariance(statistics, config.shrinkage)
    views = count_views(config.flip, config.turns)
    means, chance = estimated_means(statistics, covariance, views)
    return linear_discriminant(means, covariance, chance)


def estimated_means(
    statistics: ClassStatistics, covariance: Tensor, views: int
) -> tuple[Tensor, Tensor]:
    """Class means as far as they can be told from n_c images, and what chance is left in them.

    The mean of few images lies far from all others by chance alone, so that its class would hardly
    ever be answered. With distances measured by S, let the classes' means vary about their own by a
    variance that is 1/m of that of images; then

        k_c = n_c / (n_c + m),    mean_c' = g + k_c (mean_c - g),    g = sum k_c mean_c / sum k_c

    is the expected mean, and k_c^2 tr(S^-1 Sigma) / n_c what chance adds to its squared length. As
    in an analysis of variance, with F the variance of means over that of images,

        m = n / (F - 1),    F = sum_c n_c |mean_c - mean|_S^2 / ((C - 1) tr(S^-1 Sigma)),

    where n is the usual number of images a class, (N - sum n_c^2 / N) / (C - 1). Of equally large
    classes none gains on another, and the bias is the same for all.

    Args:
        statistics: of C classes, D features.
        covariance: S (D, D), positive definite.
        views: samples that are of one image: they do not tell more than it.

    Returns:
        The means (C, D), and (C,) the chance in them. m is at most n: means that tell nothing
        (F < 2) are drawn half-way, not into one point.

    Source: James and Stein 1961; empirical Bayes with the moment estimate of a one-way analysis of
    variance (Searle, Casella, McCulloch 1992); for the bias of few images in quadratic terms Moran
    and Murphy 1979.
    """
    counts, means = statistics.counts / views, statistics.means
    if len(means) < 2:
        return means, torch.zeros_like(counts)
    inverse = torch.linalg.inv(covariance)
    spread = (inverse * statistics.covariance).sum()  # tr(S^-1 Sigma)
    total = counts.sum()
    apart = means - counts @ means / total
    between = counts @ ((apart @ inverse) * apart).sum(1) / (len(means) - 1)
    usual = (total - counts @ counts / total) / (len(means) - 1)
    # Without any spread the means are what they are.
    least = spread.clamp(min=torch.finfo(torch.float64).tiny)
    strength = usual * spread / torch.maximum(between - spread, least)
    kept = torch.where(counts > 0, counts / (counts + strength), 0)
    centre = kept @ means / kept.sum()
    chance = torch.where(counts > 0, kept.square() * spread / counts, 0)
    return centre + kept.unsqueeze(1) * (means - centre), chance


def linear_discriminant(means: Tensor, covariance: Tensor, chance: Tensor | None = None) -> State:
    """Linear discriminant analysis with equal priors, as a head: for the covariance S

        w_c = S^-1 mu_c,    b_c = -1/2 (mu_c^T S^-1 mu_c - chance_c),

    which is Bayes' rule for classes that are normal with a common covariance and equally frequent.
    It is centred: of w and of b their mean over the classes is taken away, which adds the same to
    all logits of an image, and no softmax sees. What all classes have in common is by far the
    larger part: with it, rounding to float32 changes probabilities.

    Args:
        means: (C, D) float64.
        covariance: S (D, D) float64, positive definite.
        chance: (C,), by which the squared lengths of means are too large; none: of none.

    Returns:
        `weight` (C, D) and `bias` (C,), float32; each sums to 0 over the classes.
    """
    centre = means.mean(0)
    weight = torch.linalg.solve(covariance, (means - centre).T).T
    # mu_c^T S^-1 mu_c, up to the same number for all.
    length = (weight * (means + centre)).sum(1)
    bias = -0.5 * (length if chance is None else length - chance)
    return {"weight": weight.float(), "bias": (bias - bias.mean()).float()}


def weighed_temperature(temperature: float, images: int) -> Tensor:
    """(2,) float64: images times the logarithm, and images, to be added up (`mean_temperature`).

    Both are 0 for a temperature of exactly 1, which says that nothing could be found.
    """
    weight = 0 if temperature == 1 else images
    return torch.tensor([weight * math.log(temperature), weight], dtype=torch.float64)


def mean_temperature(weighed: Tensor) -> float:
    """The geometric mean of what `weighed_temperature` gave, added up (2,); 1 of nothing."""
    logarithms, images = weighed.tolist()
    return math.exp(logarithms / images) if images else 1.0


def calibration_temperature(
    statistics: ClassStatistics, features: Tensor, labels: Tensor, config: HeadConfig
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
        config: as for the head.

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
    head = discriminant_head(reduced, config)
    logits = linear(features[0, held], head["weight"], head["bias"]).double()
    targets = labels[held]
    weights = 1 / torch.bincount(targets).double()[targets]

    def loss(log_temperature: float) -> float:
        losses = cross_entropy(logits / math.exp(log_temperature), targets, reduction="none")
        return float((weights * losses).sum())

    if loss(0.0) < 1e-6:  # nothing to learn from: any temperature would do
        return 1.0
    return math.exp(minimize_scalar(loss, bounds=(0, math.log(HOTTEST)), method="bounded").x)
