"""Which score tells "none of the classes I know".

The tables of benchmarks/measurements/change-control.md.

Each class in turn is left out; of the others class statistics, nothing else, are measured on frozen
features. A threshold is set on images for itself; false alarms and AUROC (known against left-out)
are measured on further images, no patient being on two sides. Without `--test` all three are of the
training split, in five rotations, to choose by; with it statistics are of the training images, half
the test patients set the threshold and the other half is measured, then the other way round.

    python benchmarks/open_set.py data/skin8 data/blood8 data/path9            # to choose by
    python benchmarks/open_set.py data/skin8 data/blood8 data/path9 --test     # to report
    python benchmarks/open_set.py data/skin8 data/blood8 data/path9 --foreign  # other sets' images
    python benchmarks/open_set.py data/skin8 data/blood8 --by-class     # one promise or one a class
    python benchmarks/open_set.py data/skin8 data/blood8 data/path9 --calibration
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor
from torch.nn.functional import linear

from dynammo.config import Config, HeadConfig
from dynammo.data.formats.pictures import load_image
from dynammo.data.sources import csv_manifest
from dynammo.evaluation import appearance
from dynammo.evaluation.honesty import quantile_of, rank, unknown_limits
from dynammo.evaluation.metrics import (
    classwise_calibration_error,
    expected_calibration_error,
    open_set_auroc,
)
from dynammo.evaluation.strangeness import strangeness
from dynammo.heads.discriminant import calibration_temperature, discriminant_head
from dynammo.heads.mahalanobis import mahalanobis
from dynammo.heads.scaling import power_normalise
from dynammo.heads.statistics import ClassStatistics, measure_classes
from dynammo.network.backbones import pretrained_weights
from dynammo.network.network import build_network

ALARM = 0.05
Indices = NDArray[np.int64]
Fold = tuple[Indices, Indices, Indices]  # to fit, to set the threshold, to measure


class Pictures(NamedTuple):
    """A data set: features (N, D) as the head takes them, whose columns `last` are of the network's
    last level, what is measured of their appearance (N, K), classes, patients, and which are test
    images.
    """

    features: Tensor
    looks: NDArray[np.float64]
    labels: Indices
    groups: NDArray[np.str_]
    tests: NDArray[np.bool_]
    last: slice


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="with manifest.csv")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--foreign", action="store_true", help="unknown are the other folders")
    parser.add_argument("--by-class", action="store_true", help="limits as models have them")
    parser.add_argument("--calibration", action="store_true", help="corrections of probabilities")
    given = parser.parse_args()
    config = Config.model_validate({"image": {"size": given.size}})
    sets = {folder.name: read(folder, config) for folder in given.folders}
    print("set, score: AUROC, mean (lowest to highest); false alarms and unknown found in %")
    for folder, data in sets.items():
        if given.by_class:
            others = [other for name, other in sets.items() if name != folder]
            show_alarms(folder, data, others, config.head)
            continue
        if given.calibration:
            show_calibration(folder, data, config.head)
            continue
        if given.foreign:
            others = [other for name, other in sets.items() if name != folder]
            found = foreign(data, others, config.head)
        else:
            found = measured(data, config.head, given.test)
        for name, rows in found.items():
            areas, alarms, shares = np.array(rows).T
            print(
                f"{folder:7} {name:24} {areas.mean():.3f} "
                f"({areas.min():.2f} to {areas.max():.2f}) {100 * alarms.mean():5.1f} "
                f"{100 * shares.mean():5.1f}",
                flush=True,
            )


def read(folder: Path, config: Config) -> Pictures:
    """Features of a data set's images on the frozen network."""
    source, form = csv_manifest.load(folder), config.image.form
    names = source.classes
    network = build_network(config.backbone, pretrained_weights(config.backbone), form)
    pixels = np.stack([load_image(source.root / own.file, form) for own in source.samples])
    with torch.inference_mode():
        parts = torch.from_numpy(pixels).permute(0, 3, 1, 2).split(64)
        raw = torch.cat([network(part) for part in parts])
    assert network.signed is not None
    channels = list(network.backbone.feature_info)[-1]["num_chs"]  # type: ignore[arg-type]
    return Pictures(
        power_normalise(raw, config.head.power),
        np.concatenate([appearance.measure(pixels[i : i + 64]) for i in range(0, len(raw), 64)]),
        np.array([names.index(own.label) for own in source.samples]),
        np.array([own.group or own.file for own in source.samples]),
        np.array([own.split == "test" for own in source.samples]),
        slice(-channels * (1 + network.signed[-1]), None),
    )


def measured(data: Pictures, config: HeadConfig, test: bool) -> dict[str, list[list[float]]]:
    """For each score the rows (AUROC, false alarms, found), one a class that was left out."""
    chosen = np.ones(len(data.labels), dtype=bool) if test else ~data.tests
    features, labels, groups = data.features[chosen], data.labels[chosen], data.groups[chosen]
    looks = data.looks[chosen]
    tests = data.tests if test else None
    rows: dict[str, list[list[float]]] = {}
    for left in range(labels.max() + 1):
        turns: dict[str, list[list[float]]] = {}
        place = torch.from_numpy(labels - (labels > left))
        for fit, limit, rest in folds(labels, groups, tests):
            fit, limit = fit[labels[fit] != left], limit[labels[limit] != left]
            scored = scores(features, looks, place, fit, limit, config, data.last)
            unknown = labels[rest] == left
            for name, values in scored.items():
                beyond = values[rest] > quantile_of(values[limit], ALARM)
                area = open_set_auroc(~unknown, -values[rest])
                assert area is not None
                row = [area, float(beyond[~unknown].mean()), float(beyond[unknown].mean())]
                turns.setdefault(name, []).append(row)
        for name, found in turns.items():
            rows.setdefault(name, []).append(np.mean(found, axis=0).tolist())
    return rows


def foreign(
    data: Pictures, others: Sequence[Pictures], config: HeadConfig
) -> dict[str, list[list[float]]]:
    """Likewise, all classes known and the images of the other sets unknown; a row a fold."""
    mine = np.flatnonzero(~data.tests)
    strangers = torch.cat([own.features for own in others])
    features = torch.cat([data.features[mine], strangers])
    looks = np.concatenate([data.looks[mine], *(own.looks for own in others)])
    labels = data.labels[mine]
    place = torch.from_numpy(np.concatenate([labels, np.full(len(strangers), labels.max() + 1)]))
    far = np.arange(len(mine), len(features))
    rows: dict[str, list[list[float]]] = {}
    for fit, limit, own in folds(labels, data.groups[mine], None):
        scored = scores(features, looks, place, fit, limit, config, data.last)
        for name, values in scored.items():
            threshold = quantile_of(values[limit], ALARM)
            both = np.concatenate([values[own], values[far]])
            area = open_set_auroc(np.arange(len(both)) < len(own), -both)
            assert area is not None
            shares = [float((values[part] > threshold).mean()) for part in (own, far)]
            rows.setdefault(name, []).append([area, *shares])
    return rows


def folds(
    labels: Indices, groups: NDArray[np.str_], tests: NDArray[np.bool_] | None
) -> Iterator[Fold]:
    """Where the images of every fold are."""
    if tests is not None:
        train, rest = np.flatnonzero(~tests), np.flatnonzero(tests)
        halves = StratifiedGroupKFold(2, shuffle=True, random_state=1)
        for one, other in halves.split(rest, labels[rest], groups[rest]):
            yield train, rest[one], rest[other]
        return
    fifths = StratifiedGroupKFold(5, shuffle=True, random_state=1)
    parts = [part for _, part in fifths.split(labels, labels, groups)]
    for turn in range(5):
        first, second, *others = parts[turn:] + parts[:turn]
        yield np.concatenate(others), first, second


def scores(
    features: Tensor,
    looks: NDArray[np.float64],
    labels: Tensor,
    fit: Indices,
    limit: Indices,
    config: HeadConfig,
    last: slice,
) -> dict[str, NDArray[np.float64]]:
    """Each score of all images (N,), higher where one is stranger to the classes of `fit`.

    Args:
        features: (N, D), as the head takes them.
        looks: (N, K), of their appearance.
        labels: (N,), meaningless where a class was left out.
        fit: of these are the statistics.
        limit: the images that prediction sets are calibrated on.
        config: the shrinkage.
        last: columns of the network's last level.
    """
    of = labels[fit]
    known, shares, logits = answers(features, labels, fit, config)
    at_last = known._replace(means=known.means[:, last], scatter=known.scatter[last, last])
    near, near_last = (
        mahalanobis(part, of_known, config.shrinkage).amin(1)
        for part, of_known in ((features, known), (features[:, last], at_last))
    )
    found = {
        "softmax": -shares.amax(1),
        "largest logit": -logits.amax(1),
        "Mahalanobis": near,
        "Mahalanobis, last level": near_last,
        "relative Mahalanobis": near - to_all(features, known, config.shrinkage),
        "relative, last level": near_last - to_all(features[:, last], at_last, config.shrinkage),
        "prediction set empty": unusual(shares, labels, limit),
    }
    energy = strangeness(shares.numpy())
    looked = appearance.fit(looks[fit], of.numpy()).distance(looks)
    return {
        "energy": energy,
        "appearance": looked,
        "energy or appearance": np.maximum(
            rank(energy, energy[limit]), rank(looked, looked[limit])
        ),
        **{name: values.numpy() for name, values in found.items()},
    }


def answers(
    features: Tensor, labels: Tensor, fit: Indices, config: HeadConfig
) -> tuple[ClassStatistics, Tensor, Tensor]:
    """Statistics of the images of `fit`, and (N, C) probabilities and logits of all images."""
    own, of = features[fit], labels[fit]
    known = measure_classes(own[None], of, int(of.max()) + 1)
    config = config.model_copy(update={"flip": False})  # each image has one view
    head = discriminant_head(known, config)
    temperature = calibration_temperature(known, own[None], of, config)
    logits = linear(features, head["weight"], head["bias"]).double() / temperature
    return known, logits.softmax(1), logits


def show_alarms(
    folder: Path, data: Pictures, others: Sequence[Pictures], config: HeadConfig
) -> None:
    """How many known images of each class, left-out ones and foreign ones are called unknown, by
    limits of all classes together (of a smaller share, too) and of each class.
    """
    mine = np.flatnonzero(~data.tests)
    features, looks = data.features[mine], data.looks[mine]
    labels, groups = data.labels[mine], data.groups[mine]
    classes = int(labels.max()) + 1
    strangers = [(other.features, other.looks) for other in others]
    rules = [("together", ALARM, False), ("together", 0.02, False), ("by class", ALARM, True)]
    called = {rule: np.zeros((3, classes)) for rule in rules}  # known, left out, foreign
    seen = np.zeros((3, classes))
    for left in [-1, *range(classes)]:  # first none
        place = labels - (labels > left) * (left >= 0)
        for fit, limit, rest in folds(labels, groups, None):
            fit, limit = fit[labels[fit] != left], limit[labels[limit] != left]
            parts = [(0, features[rest], looks[rest], labels[rest])]
            if left >= 0:
                out = rest[labels[rest] == left]
                parts = [(1, features[out], looks[out], labels[out])]
            elif strangers:
                far = [torch.cat([own for own, _ in strangers])]
                parts.append((2, far[0], np.concatenate([own for _, own in strangers]), None))
            every = torch.cat([features, *(own for _, own, _, _ in parts)])
            padded = torch.from_numpy(np.pad(place, (0, len(every) - len(place))))
            shares = answers(every, padded, fit, config)[1].numpy()
            limits = {
                rule: unknown_limits(shares[limit], place[limit], looks[limit], rule[1], rule[2])
                for rule in rules
            }
            start = len(features)
            for kind, own, look, of in parts:
                given = shares[start : start + len(own)]
                start += len(own)
                at = np.zeros(len(own), int) if of is None else of
                seen[kind] += np.bincount(at, minlength=classes)
                for rule, found in limits.items():
                    assert found is not None
                    beyond = np.logical_or(*found.beyond(given, look))
                    called[rule][kind] += np.bincount(at, weights=beyond, minlength=classes)
    for rule, counts in called.items():
        known, out, far = 100 * counts / np.maximum(seen, 1)
        print(
            f"{folder} {rule[0]} {100 * rule[1]:g} %: known "
            f"{100 * counts[0].sum() / seen[0].sum():.1f}, worst class {known.max():.1f}, left out "
            f"{out.mean():.1f}, foreign {far[0]:.1f}; known by class {known.round(1).tolist()}",
            flush=True,
        )


def show_calibration(folder: Path, data: Pictures, config: HeadConfig) -> None:
    """Calibration errors, in points, as it is and after corrections fitted to held-out images."""
    mine = np.flatnonzero(~data.tests)
    features, labels = data.features[mine], data.labels[mine]
    rows: dict[str, list[list[float]]] = {}
    for fit, limit, rest in folds(labels, data.groups[mine], None):
        logits = answers(features, torch.from_numpy(labels), fit, config)[2].numpy()
        for name in ("none", "temperature", "bias", "temperature, bias", "scale, bias"):
            change = correction(name, logits[limit], labels[limit])
            shares = softmax(change(logits[rest]), axis=1)
            error = expected_calibration_error(labels[rest], shares.argmax(1), shares.max(1))
            of_class = classwise_calibration_error(labels[rest], shares)
            row = [error, float(of_class.mean()), float(of_class.max())]
            rows.setdefault(name, []).append(row)
    for name, found in rows.items():
        values = ", ".join(f"{100 * value:.1f}" for value in np.mean(found, axis=0))
        print(f"{folder} {name}: ECE, classwise, worst class {values}", flush=True)


def correction(
    name: str, logits: NDArray[np.float64], labels: Indices
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """A change of logits (N, C) fitted by cross-entropy, classes weighing the same: a temperature,
    a bias a class, both, or a scale and a bias a class (vector scaling, Guo et al. 2017).
    """
    count = logits.shape[1]
    scales = {"temperature": 1, "temperature, bias": 1, "scale, bias": count}.get(name, 0)
    biases = count * ("bias" in name)
    weights = 1 / np.bincount(labels, minlength=count)[labels]

    def changed(x: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
        scale = np.exp(values[:scales]) if scales else 1.0
        return x * scale + (values[scales:] if biases else 0.0)

    def loss(values: NDArray[np.float64]) -> float:
        said = log_softmax(changed(logits, values), axis=1)[np.arange(len(labels)), labels]
        return float(-(weights * said).sum() / weights.sum() + 0.01 * (values**2).sum())

    best = minimize(loss, np.zeros(scales + biases)).x if scales + biases else np.zeros(0)
    return lambda x: changed(x, best)


def to_all(features: Tensor, known: ClassStatistics, shrinkage: float) -> Tensor:
    """(N,): Mahalanobis distance to the mean of all images, with the covariance of all: what is
    taken away for the relative distance (Ren et al. 2021, arXiv 2106.09022).
    """
    centre = (known.counts[:, None] * known.means).sum(0) / known.counts.sum()
    apart = (known.means - centre) * known.counts.sqrt()[:, None]
    whole = ClassStatistics(centre[None], known.scatter + apart.T @ apart, known.counts.sum()[None])
    return mahalanobis(features, whole, shrinkage)[:, 0]


def unusual(shares: Tensor, labels: Tensor, limit: Indices) -> Tensor:
    """(N,): from which chance of missing a class on an image's prediction set is empty, negative:
    how many calibration images of the class that it fits best fit that class better.
    """
    columns = []
    for c in range(shares.shape[1]):
        calibration = (1 - shares[limit][labels[limit] == c, c]).sort().values
        columns.append(torch.searchsorted(calibration, 1 - shares[:, c].contiguous()))
    counts = torch.bincount(labels[limit], minlength=shares.shape[1])
    return (torch.stack(columns, 1) / counts).amin(1).double()


if __name__ == "__main__":
    main()
