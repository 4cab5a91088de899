r"""What the estimation of class means is worth where classes have few images, or unequally many.

The table of benchmarks/measurements/presets.md. On features of the frozen network, with the
discriminant of preset best, no task one after another. Against the textbook's head, whose means
are those of the images: means only drawn together, only their squared lengths corrected, and both,
which is what `dynammo.heads.discriminant.estimated_means` does.

Training images are drawn with each seed: so many of each class; so many of one class and 100 of
every other, each class in turn; 10 of half of the classes, drawn by the seed, and 100 of the
others; or all. Nothing is chosen: validation and test images are measured alike.

    python benchmarks/validation_split.py data/skin8/manifest.csv --output WORK/validation.csv
    OMP_NUM_THREADS=1 python benchmarks/rare.py data/skin8 WORK/validation.csv
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from siblings import MANY, Draw, Pictures, asked, drawn
from torch import Tensor
from torch.nn.functional import linear

from dynammo.config import HeadConfig
from dynammo.evaluation.metrics import class_recall
from dynammo.heads.discriminant import discriminant_head, estimated_means, linear_discriminant
from dynammo.heads.statistics import ClassStatistics, measure_classes, shrunk_covariance
from dynammo.network.features import count_views
from dynammo.state import State

SIZES = (5, 20, 100)
FEW = (1, 2, 5, 20)
SOME = 10


def main() -> None:
    """Print the recalls of every head for every way of drawing images."""
    classes, data, config, seeds = asked(__doc__, [1, 50, 42, 100, 1993])
    print("mean class recall in %, validation / test, and the rare class's on test images")
    for name, draws in draws_of(data, len(classes), seeds).items():
        found: dict[str, list[NDArray[np.float64]]] = {}
        for draw in draws:
            for head, values in measured(data, draw, config):
                found.setdefault(head, []).append(values)
        means = {head: 100 * np.mean(values, axis=0) for head, values in found.items()}
        print(f"{name}:")
        for head, (choose, measure, rare) in means.items():
            print(f"    {head}: {choose:.1f} / {measure:.1f}, {rare:.1f}", flush=True)


def draws_of(data: Pictures, classes: int, seeds: list[int]) -> dict[str, list[Draw]]:
    """By what they are, the draws of training images."""

    def some(seed: int, sizes: list[int], rare: int | None = None) -> Draw:
        return Draw(seed, drawn(data, sizes, seed), rare)

    def half(seed: int) -> list[int]:
        place = np.random.default_rng(seed).permutation(classes)
        return [SOME if own % 2 else MANY for own in place]

    return {
        **{
            f"up to {size} of each": [some(seed, [size] * classes) for seed in seeds]
            for size in SIZES
        },
        "all there are": [some(1, [len(data.labels)] * classes)],
        f"{SOME} of half of them, up to {MANY} of the others": [
            some(seed, half(seed)) for seed in seeds
        ],
        **{
            f"{few} of one, up to {MANY} of the others": [
                some(seed, [few if own == rare else MANY for own in range(classes)], rare)
                for seed in seeds
                for rare in range(classes)
            ]
            for few in FEW
        },
    }


def measured(
    data: Pictures, draw: Draw, config: HeadConfig
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Of every head its mean class recall on validation and on test images, and there that of the
    rare class.
    """
    features = data.features[:, torch.from_numpy(draw.images)]
    labels = torch.from_numpy(data.labels[draw.images])
    classes = int(data.labels.max()) + 1
    for name, head in heads(measure_classes(features, labels, classes), config):
        answers = linear(data.features[0], head["weight"], head["bias"]).argmax(1).numpy()
        choose, measure = (
            class_recall(data.labels[data.use == use], answers[data.use == use], classes)
            for use in ("choose", "measure")
        )
        rare = np.nan if draw.rare is None else measure[draw.rare]
        yield name, np.array([choose.mean(), measure.mean(), rare])


def heads(statistics: ClassStatistics, config: HeadConfig) -> Iterator[tuple[str, State]]:
    """The discriminant with means as measured, and as estimated, in parts and as a whole."""
    covariance = shrunk_covariance(statistics, config.shrinkage)
    views = count_views(config.flip, config.turns)
    means, _ = estimated_means(statistics, covariance, views)
    yield "as measured", linear_discriminant(statistics.means, covariance)
    yield "drawn together", linear_discriminant(means, covariance)
    lengths = _chance(statistics, covariance, views)
    yield "lengths corrected", linear_discriminant(statistics.means, covariance, lengths)
    yield "both", discriminant_head(statistics, config)


def _chance(statistics: ClassStatistics, covariance: Tensor, views: int) -> Tensor:
    """(C,): tr(S^-1 Sigma) / n_c, what chance adds to the squared length of the mean of n_c."""
    spread: Tensor = torch.linalg.solve(covariance, statistics.covariance).trace()
    return spread * views / statistics.counts


if __name__ == "__main__":
    main()
