"""Labelled images on which a smaller model is made, and others on which it is judged."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from dynammo.data.formats.pictures import Form, load_image
from dynammo.data.samples import Sample
from dynammo.deploy.graph import open_session, softmax
from dynammo.errors import DataError, ExportError
from dynammo.evaluation.metrics import expected_calibration_error, mean_class_recall
from dynammo.learner.batch import list_labelled, split_off

_JUDGED = 0.5  # of the images of a class that comes without test images
_BATCH = 32

Logits = NDArray[np.float32]


class Labelled(NamedTuple):
    """`images` (N, 3, H, S) uint8 RGB, `targets` (N,) class indices, and what each is called."""

    images: NDArray[np.uint8]
    targets: NDArray[np.int64]
    names: list[str]


class Trial(NamedTuple):
    """What a smaller model is `made_on`, and the images it is `judged_on`, each looked at once."""

    made_on: Labelled
    judged_on: Labelled


def load_trial(path: Path, classes: Sequence[str], form: Form) -> Trial:
    """Training images make the model, test images judge it.

    Args:
        path: a CSV or a folder, as a batch arrives (`dynammo.learner.batch`). Of a class without
            test images half of the images, by group, judge.
        classes: of the model.
        form: of its images.

    Raises:
        DataError: an image cannot be read or is of an unknown class, or there are too few.
    """
    image_set = split_off(list_labelled(path, volumes=form.volumes), _JUDGED)
    if unknown := sorted(set(image_set.classes) - set(classes)):
        raise DataError(f"{path}: the model has not learnt {unknown}; it knows {list(classes)}")

    def part(split: str) -> Labelled:
        samples = [sample for sample in image_set.samples if sample.split == split]
        return _loaded(image_set.root, samples, classes, form)

    made_on, judged_on = part("train"), part("test")
    if min(len(made_on.targets), len(judged_on.targets)) < 2:
        raise DataError(f"{path}: too few images to make a model with some and judge it on others")
    return Trial(made_on, judged_on)


def _loaded(root: Path, samples: Sequence[Sample], classes: Sequence[str], form: Form) -> Labelled:
    images = np.zeros((len(samples), 3, form.height, form.size), np.uint8)
    for image, sample in zip(images, samples, strict=True):
        image[:] = load_image(root / sample.file, form).transpose(2, 0, 1)
    targets = np.array([list(classes).index(sample.label) for sample in samples], np.int64)
    return Labelled(images, targets, [sample.file for sample in samples])


def logits_of(run: Callable[[NDArray[np.uint8]], Logits], images: NDArray[np.uint8]) -> Logits:
    """(N, C), in batches."""
    return np.concatenate([run(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)])


def shuffled(labelled: Labelled) -> Labelled:
    """In an order in which classes are mixed, always the same."""
    order = np.random.default_rng(0).permutation(len(labelled.targets))
    names = [labelled.names[index] for index in order]
    return Labelled(labelled.images[order], labelled.targets[order], names)


def runner(graph: bytes, threads: int | None = None) -> Callable[[NDArray[np.uint8]], Logits]:
    """What computes a graph's logits (N, C), in one batch."""
    session = open_session(graph, threads)

    def run(images: NDArray[np.uint8]) -> Logits:
        (logits,) = session.run(["logits"], {"images": images})
        return logits  # type: ignore[no-any-return]

    return run


def logits_on(graph: bytes, images: NDArray[np.uint8]) -> Logits:
    """Of a graph, (N, C)."""
    return logits_of(runner(graph), images)


def divergence(wanted: Logits, own: Logits) -> float:
    """Mean of KL(wanted || own) of the class probabilities, in nats."""
    p, q = (np.clip(softmax(logits), 1e-12, None) for logits in (wanted, own))
    return float((p * np.log(p / q)).sum(1).mean())


def temperature_of(wanted: Logits, own: Logits) -> float:
    """T of softmax(own / T), nearest to softmax(wanted)."""

    def loss(logarithm: float) -> float:
        return divergence(wanted, own / np.exp(logarithm))

    return float(np.exp(minimize_scalar(loss, bounds=(-1, 1), method="bounded").x))


def compared(
    before: Logits, after: Logits, judged_on: Labelled, classes: Sequence[str]
) -> dict[str, Any]:
    """What a smaller model costs: mean class recall, flips and calibration, before and after.

    `negative_flips` lists each image that was right before and is wrong now.
    """
    targets, names = judged_on.targets, judged_on.names
    was, now = before.argmax(1), after.argmax(1)
    recall = [mean_class_recall(targets, predicted, len(classes)) for predicted in (was, now)]
    lost = np.flatnonzero((was == targets) & (now != targets)).tolist()
    return {
        "images": len(targets),
        "mean_class_recall": {"before": recall[0], "after": recall[1]},
        "drop": recall[0] - recall[1],
        "ece": {"before": ece(before, targets), "after": ece(after, targets)},
        "agreement": float(np.mean(was == now)),
        "positive_flips": int(((was != targets) & (now == targets)).sum()),
        "negative_flips": [
            {"image": names[i], "class": classes[targets[i]], "named": classes[now[i]]}
            for i in lost
        ],
    }


def ece(logits: Logits, targets: NDArray[np.int64]) -> float:
    """Expected calibration error of the class named."""
    probabilities = softmax(logits)
    return expected_calibration_error(targets, logits.argmax(1), probabilities.max(1))


def accept(what: str, comparison: Mapping[str, Any], max_drop: float) -> None:
    """Refuse a smaller model that costs too much.

    Args:
        what: of the model was made smaller.
        comparison: by `compared`.
        max_drop: of mean class recall, in [0, 1].

    Raises:
        ExportError: it costs more; one line that says how much.
    """
    if comparison["drop"] <= max_drop + 1e-9:
        return
    recall = comparison["mean_class_recall"]
    raise ExportError(
        f"{what} costs {100 * comparison['drop']:.2f} points of mean class recall "
        f"({100 * recall['before']:.2f} to {100 * recall['after']:.2f} on {comparison['images']} "
        f"images, {len(comparison['negative_flips'])} of them wrong now that were right), more "
        f"than {100 * max_drop:g}; nothing was written"
    )


def judged(
    what: str,
    name: str,
    graphs: tuple[bytes, bytes],
    trial: Trial,
    classes: Sequence[str],
    max_drop: float,
) -> tuple[dict[str, Any], Logits]:
    """What a smaller graph costs and saves on the images that judge it, unless it costs too much.

    Args:
        what: was done, in words.
        name: of the smaller graph in the report; the whole one is "float".
        graphs: the whole one, and what was made of it.
        trial: labelled images.
        classes: of the model.
        max_drop: of mean class recall, in [0, 1].

    Returns:
        `max_drop`, `bytes`, `ms_one_image_one_thread` and what `compared` gives; and the smaller
        graph's logits.

    Raises:
        ExportError: it costs more.
    """
    judged_on = trial.judged_on
    before, after = (logits_on(graph, judged_on.images) for graph in graphs)
    comparison = compared(before, after, judged_on, classes)
    accept(what, comparison, max_drop)
    named = dict(zip(("float", name), graphs, strict=True))
    one = judged_on.images[:1]
    runs = {own: partial(runner(graph, 1), one) for own, graph in named.items()}
    report = {
        "max_drop": max_drop,
        "bytes": {own: len(graph) for own, graph in named.items()},
        "ms_one_image_one_thread": latency(runs),
        **comparison,
    }
    return report, after


def latency(runs: Mapping[str, Callable[[], object]], repeats: int = 30) -> dict[str, float]:
    """Median milliseconds of each, taken in turns after a first round that is not counted."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            spent[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(own[1:]) for name, own in spent.items()}
