"""What noise on class statistics costs, and what a curious server learns from them.

The figures of benchmarks/measurements/federated.md. Features are of the frozen default backbone,
64 pixels; three sites share the classes as there.

    python benchmarks/federated_privacy.py data/skin8/manifest.csv cost members picture
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor
from torch.nn.functional import interpolate, linear, normalize

from dynammo.config import Config, HeadConfig
from dynammo.federated.merge import SETTINGS, add_sites
from dynammo.federated.noise import noise_scale, noisy_classes
from dynammo.federated.site import SiteBatch, adapted_network, load_pixels, read_site
from dynammo.heads.discriminant import discriminant_head
from dynammo.heads.scaling import power_normalise
from dynammo.heads.statistics import ClassStatistics
from dynammo.learner.settings import first_settings
from dynammo.network.features import augmented_views

EPSILONS = (math.inf, 10.0, 3.0, 1.0)
SHRINKAGES = (0.1, 0.5, 0.9, 1.0)
SIZES = (16, 64)  # features after a random projection that everybody knows
SEEDS = range(3)


class Images(NamedTuple):
    """Features (V, N, D), class indices (N,), patients, and thumbnails (N, 3 * 16 * 16)."""

    features: Tensor
    labels: Tensor
    patients: list[str]
    thumbnails: Tensor

    def of(self, rows: Tensor) -> Images:
        """Some of them."""
        chosen = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        patients = [self.patients[row] for row in chosen.tolist()]
        return Images(
            self.features[:, chosen], self.labels[chosen], patients, self.thumbnails[chosen]
        )


def load(path: Path, config: Config, cache: Path) -> tuple[list[str], Images, Images]:
    """Classes, training images and test images."""
    batch = read_site(path, config, 1)
    names = sorted(batch.patients)
    file = cache / f"{batch.images.content_hash[:16]}.pt"
    if not file.exists():
        torch.save([_images(config, batch, names, split) for split in ("train", "test")], file)
    train, test = (Images(*parts) for parts in torch.load(file, weights_only=True))
    return names, train, test


def _images(config: Config, batch: SiteBatch, names: list[str], split: str) -> tuple[object, ...]:
    samples = batch.images.select(split, names)
    pixels = load_pixels(config, batch.images, samples)
    views = augmented_views(
        adapted_network(config, None), pixels, config.head.flip, config.head.turns
    )
    small = interpolate(pixels.float() / 255, size=16, mode="area").flatten(1)
    labels = torch.tensor([names.index(own.label) for own in samples])
    patients = [own.group or own.sha256 for own in samples]
    return power_normalise(views, config.head.power), labels, patients, small


def statistics(
    images: Images, classes: int, epsilon: float, seed: int, sites: Sequence[Sequence[int]]
) -> ClassStatistics:
    """What all sites' statistics add up to, each with noise of its own."""
    parts, scale = [], noise_scale(epsilon, math.sqrt(3))
    random = np.random.default_rng(seed)
    for owned in sites:
        own = images.of(torch.isin(images.labels, torch.tensor(owned)))
        places = torch.searchsorted(torch.tensor(owned), own.labels)
        found = noisy_classes(
            *(own.features, places, own.patients, len(owned), "samples", scale), random
        )
        parts.append(([str(index) for index in owned], found))
    return add_sites(parts)[1]


def recall(found: ClassStatistics, config: HeadConfig, test: Images) -> float:
    """Mean class recall of the head, in %."""
    head = discriminant_head(found, config)
    said = linear(test.features[0].float(), head["weight"], head["bias"]).argmax(1)
    return 100 * float(balanced_accuracy_score(test.labels, said))


def projected(images: Images, size: int) -> Images:
    """With `size` features, by a projection that is the same for all, of unit length again."""
    features = images.features
    matrix = torch.randn(features.shape[2], size, generator=torch.Generator().manual_seed(0))
    return images._replace(features=normalize(features @ matrix, dim=-1))


def cost(config: Config, names: list[str], train: Images, test: Images) -> None:
    """Recall by epsilon: the settings as they are, and the best that validation images find."""
    sites = [list(own) for own in np.array_split(range(len(names)), 3)]
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=1)
    _, held = next(folds.split(train.labels, train.labels, train.patients))
    mask = torch.zeros(len(train.labels), dtype=torch.bool)
    mask[torch.from_numpy(held)] = True
    print("epsilon | as it is | chosen on validation: features, shrinkage | recall")
    for epsilon in EPSILONS:
        seeds = SEEDS if math.isfinite(epsilon) else [0]
        plain = [
            recall(statistics(train, len(names), epsilon, seed, sites), config.head, test)
            for seed in seeds
        ]
        best = (-1.0, 0, 0.0)
        for size in (*SIZES, 0):
            images = projected(train, size) if size else train
            rest, look = images.of(~mask), images.of(mask)
            made = [statistics(rest, len(names), epsilon, 100 + s, sites) for s in list(seeds)[:1]]
            for shrinkage in SHRINKAGES:
                head = config.head.model_copy(update={"shrinkage": shrinkage})
                value = float(np.mean([recall(own, head, look) for own in made]))
                best = max(best, (value, size, shrinkage))
        _, size, shrinkage = best
        head = config.head.model_copy(update={"shrinkage": shrinkage})
        images, target = (projected(own, size) if size else own for own in (train, test))
        chosen = [
            recall(statistics(images, len(names), epsilon, seed, sites), head, target)
            for seed in seeds
        ]
        print(
            f"{epsilon:g} | {np.mean(plain):.1f} ± {np.std(plain):.1f} | "
            f"{size or train.features.shape[2]}, {shrinkage} | "
            f"{np.mean(chosen):.1f} ± {np.std(chosen):.1f}",
            flush=True,
        )


def members(config: Config, names: list[str], train: Images, test: Images) -> None:
    """AUC of telling a class's training patients from test patients, one image of each.

    `mean`: <x - p, mu - p>, with p the mean of images that the attacker has (half of the test
    images), the statistic of Dwork et al. 2015 (Robust traceability from trace amounts).
    `scatter`: minus the squared Mahalanobis distance (x - mu)' (S / n + l I)^-1 (x - mu), which the
    scatter matrix allows for. 0.5 is guessing. Non-members are the other half of the test images.
    """
    own = torch.arange(len(test.labels)) % 2 == 0
    known, strangers = test.of(own), test.of(~own)
    print("patients a class | epsilon | mean | scatter")
    for count in (5, 0):
        for epsilon in EPSILONS:
            found: dict[str, list[float]] = {"mean": [], "scatter": []}
            for seed in SEEDS[:2]:
                inside = drawn(train, len(names), count, seed)
                sites = [list(part) for part in np.array_split(range(len(names)), 3)]
                released = statistics(inside, len(names), epsilon, seed, sites)
                covariance = released.scatter / released.counts.sum()
                ridge = 1e-3 * covariance.trace().clamp(min=1e-9) / len(covariance)
                inverse = torch.linalg.inv(covariance + ridge * torch.eye(len(covariance)).double())
                scores: dict[str, list[Tensor]] = {"mean": [], "scatter": []}
                truth = []
                for label in range(len(names)):
                    here = inside.features[0, inside.labels == label].double()
                    away = strangers.features[0, strangers.labels == label].double()
                    base = known.features[0, known.labels == label].double().mean(0)
                    x, mean = torch.cat([here, away]), released.means[label]
                    apart = x - mean
                    scores["mean"].append((x - base) @ (mean - base))
                    scores["scatter"].append(-((apart @ inverse) * apart).sum(1))
                    truth.append(torch.cat([torch.ones(len(here)), torch.zeros(len(away))]))
                for name, parts in scores.items():
                    areas = [roc_auc_score(t, s) for t, s in zip(truth, parts, strict=True)]
                    found[name].append(float(np.mean(areas)))
            print(
                f"{count or 'all'} | {epsilon:g} | {np.mean(found['mean']):.2f} | "
                f"{np.mean(found['scatter']):.2f}",
                flush=True,
            )


def drawn(train: Images, classes: int, count: int, seed: int) -> Images:
    """One image each of `count` patients a class, or of all."""
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
    seen: set[tuple[int, str]] = set()
    rows, left = [], [count or len(order)] * classes
    for row in order.tolist():
        label = int(train.labels[row])
        if left[label] and (label, train.patients[row]) not in seen:
            seen.add((label, train.patients[row]))
            rows.append(row)
            left[label] -= 1
    return train.of(torch.tensor(sorted(rows)))


def picture(config: Config, names: list[str], train: Images, test: Images) -> None:
    """How much of a picture a linear decoder reads from a mean: it is taught by the test images,
    which the attacker has, to make 16 x 16 pixels of features (Dosovitskiy and Brox 2016, in its
    simplest form). Pearson correlation with the true mean picture, the mean of the attacker's
    pictures taken away from both; and with one single patient's picture among them.
    """
    decoder = Ridge(alpha=1e-3).fit(test.features[0].numpy(), test.thumbnails.numpy())
    base = test.thumbnails.mean(0)
    print("patients a class | epsilon | with the mean picture | with one of the pictures")
    for count in (1, 5, 0):
        for epsilon in EPSILONS[:2]:
            with_mean, with_one = [], []
            for seed in SEEDS[:1]:
                inside = drawn(train, len(names), count, seed)
                sites = [list(part) for part in np.array_split(range(len(names)), 3)]
                means = statistics(inside, len(names), epsilon, seed, sites).means
                seen = torch.from_numpy(decoder.predict(means.float().numpy())) - base
                for label in range(len(names)):
                    true = inside.thumbnails[inside.labels == label]
                    for kept, wanted in ((with_mean, true.mean(0)), (with_one, true[0])):
                        pair = np.corrcoef(seen[label].numpy(), (wanted - base).numpy())
                        kept.append(pair[0, 1])
            print(
                f"{count or 'all'} | {epsilon:g} | {np.mean(with_mean):.2f} | "
                f"{np.mean(with_one):.2f}",
                flush=True,
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path)
    parser.add_argument("what", nargs="+", choices=["cost", "members", "picture"])
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--cache", type=Path, default=Path("/tmp"), help="folder for features")
    given = parser.parse_args()
    config = first_settings("privacy", None, {**SETTINGS, "image.size": given.size})
    names, train, test = load(given.manifest, config, given.cache)
    print(
        f"{len(train.labels)} training images of {len(set(train.patients))} patients, "
        f"{len(test.labels)} test images, {train.features.shape[2]} features"
    )
    for what in given.what:
        {"cost": cost, "members": members, "picture": picture}[what](config, names, train, test)


if __name__ == "__main__":
    main()
