r"""Whether a class with few images gains by its siblings' means, where a hierarchy is known.

The table of benchmarks/measurements/presets.md. On features of the frozen network, with the
discriminant of preset best, each class's mean is drawn to that of its parent's classes,

    mean_c' = (n_c mean_c + m mean_p) / (n_c + m),    mean_p: mean over s below p of mean_s,

which is the posterior mean where classes are normal about their parent (Lindley and Smith 1972), or
James and Stein's shrinkage with a fixed strength m, in images. Class c itself is one of the s: left
out of them, two siblings would change places as m grows.

That a hierarchy helps is shown only by more than what the same does without one: with all classes
below one parent, and with classes put below parents at random (another tree for each seed).

m is chosen by the mean class recall on validation images, over all draws of training images; test
images are measured with that m. Training images: so many of each class, or all where there are
fewer; or 5 of one class and 100 of every other, each class with siblings in turn.

    python benchmarks/validation_split.py data/skin8/manifest.csv --output WORK/validation.csv
    OMP_NUM_THREADS=1 python benchmarks/siblings.py data/skin8 WORK/validation.csv
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear

from dynammo.config import Config, HeadConfig
from dynammo.data.formats.pictures import load_image
from dynammo.data.sources.csv_manifest import read_table
from dynammo.evaluation.metrics import class_recall
from dynammo.heads.discriminant import linear_discriminant
from dynammo.heads.scaling import power_normalise
from dynammo.heads.statistics import ClassStatistics, measure_classes, shrunk_covariance
from dynammo.network.backbones import pretrained_weights
from dynammo.network.features import augmented_views
from dynammo.network.network import build_network

TREES = {
    "by behaviour": {
        "malignant": ["MEL", "BCC", "SCC"],
        "precancerous": ["AK"],
        "benign": ["NV", "BKL", "DF", "VASC"],
    },
    "by tissue": {
        "melanocytic": ["MEL", "NV"],
        "epidermal": ["AK", "BCC", "BKL", "SCC"],
        "dermal": ["DF", "VASC"],
    },
}
RARE = ("BCC", "BKL", "DF", "MEL", "NV", "SCC", "VASC")  # have siblings in both
STRENGTHS = (0, 2, 5, 10, 20)  # m, in images
SIZES = (5, 20, 100)
FEW, MANY = 5, 100
Indices = NDArray[np.int64]


class Draw(NamedTuple):
    """Training images, and the class of which there are few, if one is looked at."""

    seed: int
    images: Indices
    rare: int | None


class Pictures(NamedTuple):
    """Features (V, N, D) as the head takes them, and (N,) of each image its class, and what it is
    for: to fit, to choose by, to measure.
    """

    features: Tensor
    labels: Indices
    use: NDArray[np.str_]


def main() -> None:
    """Print a row for every tree and number of images."""
    classes, data, head, seeds = asked(__doc__, [1, 50, 42])
    draws = {
        f"up to {size} a class": [
            Draw(seed, drawn(data, [size] * len(classes), seed), None) for seed in seeds
        ]
        for size in SIZES
    }
    draws[f"{FEW} of one, up to {MANY} of others"] = [
        Draw(seed, drawn(data, [FEW if own == name else MANY for own in classes], seed), rare)
        for seed in seeds
        for rare, name in enumerate(classes)
        if name in RARE
    ]
    for images, own in draws.items():
        for tree, parents in trees(classes, seeds).items():
            show(f"{images}, {tree}", data, own, parents, head)


def asked(
    description: str | None, seeds: list[int]
) -> tuple[list[str], Pictures, HeadConfig, list[int]]:
    """By the command line: classes, features, the head's settings, and seeds, or those given."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="with manifest.csv and the images")
    parser.add_argument("validation", type=Path, help="of validation_split.py")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    given = parser.parse_args()
    config = Config.model_validate({"image": {"size": given.size}})
    classes, data = read(given.folder, given.validation, config)
    return classes, data, config.head, given.seeds


def trees(classes: list[str], seeds: list[int]) -> dict[str, dict[int, list[str]]]:
    """By name and seed, the parent of each class."""
    found: dict[str, dict[int, list[str]]] = {}
    for tree, groups in TREES.items():
        parents = [next(p for p, named in groups.items() if name in named) for name in classes]
        found[tree] = dict.fromkeys(seeds, parents)
    found["all below one"] = dict.fromkeys(seeds, [""] * len(classes))
    found["at random"] = {
        seed: np.random.default_rng(seed).permutation(parents).tolist() for seed in seeds
    }
    return found


def read(folder: Path, validation: Path, config: Config) -> tuple[list[str], Pictures]:
    """Classes, and features of all images on the frozen network."""
    use = {row["file"]: "fit" for _, row in read_table(folder / "manifest.csv")[1]}
    rows = {row["file"]: row for _, row in read_table(folder / "manifest.csv")[1]}
    for _, row in read_table(validation)[1]:
        use[row["file"]] = "choose" if row["split"] == "test" else "fit"
    use |= {file: "measure" for file, row in rows.items() if row["split"] == "test"}
    classes = sorted({row["class"] for row in rows.values()})
    network = build_network(config.backbone, pretrained_weights(config.backbone), config.image.size)
    pixels = np.stack([load_image(folder / file, config.image.size) for file in rows])
    views = augmented_views(network, torch.from_numpy(pixels).permute(0, 3, 1, 2), config.head.flip)
    return classes, Pictures(
        power_normalise(views, config.head.power),
        np.array([classes.index(row["class"]) for row in rows.values()]),
        np.array([use[file] for file in rows]),
    )


def drawn(data: Pictures, sizes: list[int], seed: int) -> Indices:
    """Images to fit with: of each class so many, or all where there are fewer."""
    generator = np.random.default_rng(seed)
    chosen = []
    for label, size in enumerate(sizes):
        own = np.flatnonzero((data.labels == label) & (data.use == "fit"))
        chosen.append(generator.permutation(own)[:size])
    return np.concatenate(chosen)


def show(
    name: str,
    data: Pictures,
    draws: list[Draw],
    parents: dict[int, list[str]],
    head: HeadConfig,
) -> None:
    """What every strength has on validation images, and the chosen one on test images.

    `parents` has, for a seed, the parent of each class.
    """
    found = {
        strength: np.array([[*measured(data, own, parents, strength, head)] for own in draws])
        for strength in STRENGTHS
    }  # (draws, 3): mean class recall to choose by and to report, and the rare class's
    best = max(STRENGTHS, key=lambda own: found[own][:, 0].mean())
    validation = ", ".join(f"{m}: {100 * own[:, 0].mean():.1f}" for m, own in found.items())
    print(f"{name}: validation by m {validation}; chosen {best}", flush=True)
    for what, column in (("mean class recall", 1), ("recall of the class of few", 2)):
        was, now = (found[own][:, column] for own in (0, best))
        if not np.isnan(was).any():
            change = 100 * (now - was)
            print(
                f"    test, {what}: {100 * was.mean():.1f} -> {100 * now.mean():.1f}, change "
                f"{change.mean():+.1f} ({change.min():+.1f} to {change.max():+.1f} of "
                f"{len(draws)} draws)",
                flush=True,
            )


def measured(
    data: Pictures,
    draw: Draw,
    parents: dict[int, list[str]],
    strength: float,
    head: HeadConfig,
) -> Iterator[float]:
    """Mean class recall on validation and on test images, and there that of the rare class."""
    features = data.features[:, torch.from_numpy(draw.images)]
    labels = torch.from_numpy(data.labels[draw.images])
    own = parents[draw.seed]
    statistics = measure_classes(features, labels, len(own))
    means = towards_siblings(statistics, own, strength * len(features))
    made = linear_discriminant(means, shrunk_covariance(statistics, head.shrinkage))
    answers = linear(data.features[0], made["weight"], made["bias"]).argmax(1).numpy()
    choose, measure = (
        class_recall(data.labels[data.use == use], answers[data.use == use], len(own))
        for use in ("choose", "measure")
    )
    yield float(choose.mean())
    yield float(measure.mean())
    yield math.nan if draw.rare is None else float(measure[draw.rare])


def towards_siblings(statistics: ClassStatistics, parents: list[str], strength: float) -> Tensor:
    """(C, D): class means, drawn to the mean of the classes below the same parent.

    Args:
        statistics: of C classes.
        parents: of each its parent.
        strength: m, in samples.
    """
    means = statistics.means.clone()
    for parent in set(parents):
        rows = torch.tensor([place for place, own in enumerate(parents) if own == parent])
        own, counts = statistics.means[rows], statistics.counts[rows, None]
        means[rows] = (counts * own + strength * own.mean(0)) / (counts + strength)
    return means


if __name__ == "__main__":
    main()
