"""How good a classifier is after each task: plain functions on numpy arrays.

Throughout, a class is its index in the order of arrival over the whole scenario, `N` counts test
images and `C` the classes seen so far. So a target `>= C` is an image of a class that has not been
learnt yet: it is left out of everything but the two open-set metrics, where it is an "unknown".

A metric that has no value (the recall of a class without test images) is NaN in an array and `None`
where a single number or a JSON document is returned, never a silent 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import (
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from dynammo.hierarchy import costs, groups, mean_cost, within

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]
Matrix = Sequence[Sequence[float | None]]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a classifier said about every test image of the scenario, in a fixed order.

    Args:
        targets: (N,) int64, the true class; `>= C` where that class is not learnt yet.
        predicted: (N,) int64 in [0, C).
        scores: (N, C) floats, one probability-like score a seen class (rows need not sum to 1).
        confidence: (N,) floats in [0, 1] (give or take 1e-6 of rounding), the probability given to
            the predicted class.
        knownness: (N,) floats, higher where the image looks more like a seen class; any scale.

    Raises:
        ValueError: shapes, types or ranges are wrong, a value is not finite, or N or C is 0. All
            problems at once.
    """

    targets: Integers
    predicted: Integers
    scores: Floats
    confidence: Floats
    knownness: Floats

    def __post_init__(self) -> None:
        problems = []
        if self.scores.ndim != 2 or 0 in self.scores.shape:
            raise ValueError(f"scores must be (N, C) with N, C >= 1, got {self.scores.shape}")
        count, classes = self.scores.shape
        for name in ("targets", "predicted", "confidence", "knownness"):
            shape = getattr(self, name).shape
            if shape != (count,):
                problems.append(f"{name} must have shape ({count},) like scores, got {shape}")
        for name in ("targets", "predicted"):
            values = getattr(self, name)
            if values.dtype.kind not in "iu":
                problems.append(f"{name} must be integers, got {values.dtype}")
            elif values.size and values.min() < 0:
                problems.append(f"{name} must not be negative, got {values.min()}")
        if self.predicted.size and self.predicted.max() >= classes:
            problems.append(f"predicted must be below C = {classes}, got {self.predicted.max()}")
        for name in ("scores", "confidence", "knownness"):
            bad = int(np.count_nonzero(~np.isfinite(getattr(self, name))))
            if bad:
                problems.append(f"{name} must be finite, got {bad} that are not")
        if np.any((self.confidence < -1e-6) | (self.confidence > 1 + 1e-6)):
            low, high = self.confidence.min(), self.confidence.max()
            problems.append(f"confidence must lie in [0, 1], got {low} to {high}")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def classes(self) -> int:
        """C, the number of classes seen."""
        return int(self.scores.shape[1])

    def take(self, images: NDArray[np.bool_] | Integers) -> Predictions:
        """The predictions for the images that a mask (N,) or indices select."""
        return Predictions(
            self.targets[images],
            self.predicted[images],
            self.scores[images],
            self.confidence[images],
            self.knownness[images],
        )


def accuracy(targets: Integers, predicted: Integers) -> float:
    """Share of images predicted right, in [0, 1]; NaN without images."""
    return float(np.mean(targets == predicted)) if len(targets) else math.nan


def class_recall(targets: Integers, predicted: Integers, classes: int) -> Floats:
    """Of the images of class c, the share predicted as c: (C,) in [0, 1].

    NaN for a class without test images.
    """
    return _per_class(recall_score, targets, predicted, classes)


def class_precision(targets: Integers, predicted: Integers, classes: int) -> Floats:
    """Of the images predicted as class c, the share that are c: (C,) in [0, 1].

    NaN for a class that is never predicted.
    """
    return _per_class(precision_score, targets, predicted, classes)


def mean_class_recall(targets: Integers, predicted: Integers, classes: int) -> float:
    """Mean of `class_recall` over the classes that have test images, in [0, 1]; NaN without images.

    This is the balanced accuracy: every class weighs the same, however rare it is.
    """
    recall = class_recall(targets, predicted, classes)
    tested = ~np.isnan(recall)
    return float(recall[tested].mean()) if tested.any() else math.nan


def class_auroc(targets: Integers, scores: Floats) -> Floats:
    """Area under the ROC curve of each class against all others: (C,) in [0, 1].

    The chance that an image of class c has a higher `scores[:, c]` than an image of another class,
    ties counting one half. NaN where there are no images of the class, or none of the others.

    Args:
        targets: (N,) in [0, C).
        scores: (N, C).
    """
    areas = np.full(scores.shape[1], math.nan)
    for c in range(len(areas)):
        positive = targets == c
        if positive.any() and not positive.all():
            areas[c] = roc_auc_score(positive, scores[:, c])
    return areas


def confusion_counts(targets: Integers, predicted: Integers, classes: int) -> Integers:
    """How many images of class r are predicted as class c: (C, C), rows true, columns predicted.

    scikit-learn's `confusion_matrix` without its warning where only one class is seen.
    """
    pairs = np.bincount(classes * targets + predicted, minlength=classes**2)
    return pairs.reshape(classes, classes)


def expected_calibration_error(
    targets: Integers, predicted: Integers, confidence: Floats, bins: int = 15
) -> float:
    """Gap between confidence and accuracy (Guo et al. 2017), in [0, 1]; NaN without images.

        ECE = sum_b |B_b| / N * | accuracy(B_b) - mean confidence(B_b) |

    over bins of equal width. Bin b holds the confidences in (b / bins, (b + 1) / bins]: a value on
    an edge belongs to the bin below it, and 0 to the first bin.
    """
    return _calibration_error(targets == predicted, confidence, bins)


def classwise_calibration_error(targets: Integers, scores: Floats, bins: int = 15) -> Floats:
    """Gap between the probability given to class c and how often it is c: (C,) in [0, 1].

        ECE_c = sum_b |B_b| / N * | share of class c in B_b - mean p_c in B_b |

    over all images, in the bins of p_c of `expected_calibration_error`, whatever class is
    predicted. NaN without images, and where a score is no probability.

    Args:
        targets: (N,) in [0, C).
        scores: (N, C).
        bins: of equal width.

    Source: Kull et al. 2019 (arXiv 1910.12656), classwise-ECE before the mean over classes.
    """
    shares = np.clip(scores, 0, 1)
    return np.array(
        [
            _calibration_error(targets == c, own, bins)
            if np.allclose(own, scores[:, c], rtol=0, atol=1e-6)
            else math.nan
            for c, own in enumerate(shares.T)
        ]
    )


def _calibration_error(hits: NDArray[np.bool_], probabilities: Floats, bins: int) -> float:
    if not len(hits):
        return math.nan
    inner_edges = np.linspace(0, 1, bins + 1)[1:-1]
    bin_of = np.searchsorted(inner_edges, probabilities, side="left")
    # |B_b| * (share of hits - mean probability) is the sum of (hit - probability) over the bin.
    sums = np.bincount(bin_of, weights=hits - probabilities, minlength=bins)
    return float(np.abs(sums).sum() / len(hits))


def open_set_auroc(known: NDArray[np.bool_], knownness: Floats) -> float | None:
    """The chance that a known image has a higher knownness than an unknown one, in [0, 1].

    Ties count one half; 0.5 is guessing. `None` unless there are both known and unknown images.

    Args:
        known: (N,) bool, whether the image is of a class seen so far.
        knownness: (N,), higher means more like a seen class.
    """
    if known.all() or not known.any():
        return None
    # By ranks (Mann and Whitney), as scikit-learn's gives: a bootstrap asks a thousand times.
    count = np.count_nonzero(known)
    above = rankdata(knownness)[known].sum() - count * (count + 1) / 2
    return float(above / (count * (len(known) - count)))


def open_set_fpr95(known: NDArray[np.bool_], knownness: Floats) -> float | None:
    """Share of unknown images let through when at least 95 % of the known ones are, in [0, 1].

    An image is let through where `knownness >= t`, with the highest t that lets at least 95 % of
    the known images through; images tied at t all pass (Liang et al. 2018). Lower is better.
    `None` unless there are both known and unknown images.
    """
    if known.all() or not known.any():
        return None
    false_rate, true_rate, _ = roc_curve(known, knownness, drop_intermediate=False)
    return float(false_rate[np.searchsorted(true_rate, 0.95)])


def negative_flips(targets: Integers, before: Integers, after: Integers) -> float | None:
    """Share of images that were right before an update and are wrong after it, in [0, 1].

    All three arrays are (N,) over the same images in the same order, those of the old classes (the
    ones known before the update). `None` without images. (Yan et al. 2021.)

    Raises:
        ValueError: the arrays differ in shape.
    """
    if not targets.shape == before.shape == after.shape:
        shapes = f"{targets.shape}, {before.shape}, {after.shape}"
        raise ValueError(f"targets, before and after must be aligned, got shapes {shapes}")
    if not len(targets):
        return None
    return float(np.mean((before == targets) & (after != targets)))


def average_incremental(values: Sequence[float]) -> float:
    """Mean over the stages of an overall metric on all classes seen: "average accuracy".

    Raises:
        ValueError: there are no stages.
    """
    if not values:
        raise ValueError("the average over stages needs at least one stage")
    return float(np.mean(values))


def forgetting(matrix: Matrix) -> float | None:
    """How far old tasks fell from their best (Chaudhry et al. 2018), in [-1, 1].

        F = mean over j < n of ( max over i with j <= i < n of a[i][j] ) - a[n][j]

    The maximum is taken BEFORE the last stage, so F is negative where the last stage is the best.
    `None` with one task.

    Args:
        matrix: a[i][j], the metric on task j after learning task i; row i has i + 1 entries (both
            from 0). An entry is `None` where the task has no test images; such tasks are left out.

    Raises:
        ValueError: the rows do not have 1, 2, ..., n entries.
    """
    _check_triangular(matrix)
    return _mean(task_forgetting(matrix))


def task_forgetting(matrix: Matrix) -> list[float | None]:
    """The terms of `forgetting`, one for each task but the last; `None` without test images."""
    drops: list[float | None] = []
    for j in range(len(matrix) - 1):
        earlier = [row[j] for row in matrix[j:-1]]
        best = max((value for value in earlier if value is not None), default=None)
        last = matrix[-1][j]
        drops.append(None if best is None or last is None else best - last)
    return drops


def backward_transfer(matrix: Matrix) -> float | None:
    """What learning later tasks did to earlier ones (GEM, Lopez-Paz and Ranzato 2017), in [-1, 1].

        BWT = mean over j < n of a[n][j] - a[j][j]

    Negative means forgetting. Arguments, `None` and errors as in `forgetting`.
    """
    _check_triangular(matrix)
    changes: list[float | None] = []
    for j in range(len(matrix) - 1):
        first, last = matrix[j][j], matrix[-1][j]
        changes.append(None if first is None or last is None else last - first)
    return _mean(changes)


def evaluate_stage(
    predictions: Predictions,
    tasks: Sequence[Sequence[str]],
    stage: int,
    previous: Predictions | None = None,
    parents: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Every metric after learning task `stage`, as a JSON document (undefined values are null).

    Class-incremental: also on the images of one task, all classes seen so far compete.

    Args:
        predictions: on the test images of ALL tasks, in the same order at every stage.
        tasks: the class names of ALL tasks, in order of arrival.
        stage: how many tasks have been learnt, from 1.
        previous: the predictions before the last update over the same images, or over the first
            of them, for `negative_flips`.
        parents: what classes belong to (`dynammo.hierarchy`), where that is known.

    Returns:
        `task` (= stage), `classes` (the C names seen), `accuracy`, `mean_class_recall`,
        `task_accuracy` and `task_mean_class_recall` (one entry a task learnt: row `stage` of
        `a[i][j]`), `negative_flips` (null at stage 1 or without `previous`), `ece`,
        `open_set_auroc` and `open_set_fpr95` (null where no unknowns are left), `per_class` (name
        -> recall, precision, auroc, calibration, support), `confusion` (C rows of true, C columns
        of predicted classes). With `parents` also `hierarchical_cost`, the mean over classes of
        what answers cost by it, and `per_group` (name -> recall, the share of its classes' images
        that are answered with one of them, support, classes).

    Raises:
        ValueError: the arguments contradict each other, or no test image is of a seen class.
    """
    if not 1 <= stage <= len(tasks):
        raise ValueError(f"stage must lie in 1..{len(tasks)}, got {stage}")
    bounds = np.cumsum([0, *(len(task) for task in tasks)])
    classes, total = int(bounds[stage]), int(bounds[-1])
    if predictions.classes != classes:
        raise ValueError(
            f"{classes} classes are seen at stage {stage}, the scores have {predictions.classes}"
        )
    if predictions.targets.max() >= total:
        highest = predictions.targets.max()
        raise ValueError(f"targets must be below {total}, the number of classes, got {highest}")
    is_known = predictions.targets < classes
    if not is_known.any():
        raise ValueError(f"no test image is of a class seen at stage {stage}")

    known = predictions.take(is_known)
    targets, predicted = known.targets, known.predicted
    return _document(
        tasks[:stage],
        targets,
        predicted,
        {
            "negative_flips": _flips_since(previous, predictions),
            "ece": expected_calibration_error(targets, predicted, known.confidence),
            "open_set_auroc": open_set_auroc(is_known, predictions.knownness),
            "open_set_fpr95": open_set_fpr95(is_known, predictions.knownness),
        },
        {
            "auroc": class_auroc(targets, known.scores),
            "calibration": classwise_calibration_error(targets, known.scores),
        },
        parents,
    )


def evaluate_counts(
    confusion: Integers,
    tasks: Sequence[Sequence[str]],
    negative_flips: float | None,
    parents: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The document of `evaluate_stage` where nothing but counts is known: what needs scores is
    null.

    Args:
        confusion: (C, C), rows true, columns predicted.
        tasks: the class names of all tasks learnt, in order of arrival.
        negative_flips: as counted.
        parents: as in `evaluate_stage`.

    Raises:
        ValueError: nothing was counted.
    """
    names = [name for task in tasks for name in task]
    if confusion.shape != (len(names),) * 2 or not confusion.sum():
        raise ValueError(
            f"counts {confusion.shape} of {len(names)} classes, {confusion.sum()} in all"
        )
    overall = {
        "negative_flips": negative_flips,
        "ece": None,
        "open_set_auroc": None,
        "open_set_fpr95": None,
    }
    unknown = np.full(len(names), math.nan)
    by_class = {"auroc": unknown, "calibration": unknown}
    return _document(tasks, *from_counts(confusion), overall, by_class, parents)


def _document(
    tasks: Sequence[Sequence[str]],
    targets: Integers,
    predicted: Integers,
    overall: dict[str, float | None],
    by_class: dict[str, Floats],
    parents: Mapping[str, str] | None,
) -> dict[str, Any]:
    """What follows from the answers to images of the tasks learnt, with what is known besides."""
    names = [name for task in tasks for name in task]
    classes, bounds = len(names), np.cumsum([0, *(len(task) for task in tasks)])
    of_task = [(low <= targets) & (targets < high) for low, high in pairwise(bounds)]
    per_class = {
        "recall": class_recall(targets, predicted, classes),
        "precision": class_precision(targets, predicted, classes),
        **by_class,
    }
    confusion = confusion_counts(targets, predicted, classes)
    support = confusion.sum(axis=1)
    return {
        "task": len(tasks),
        "classes": names,
        "accuracy": accuracy(targets, predicted),
        "mean_class_recall": mean_class_recall(targets, predicted, classes),
        "task_accuracy": [_json(accuracy(targets[own], predicted[own])) for own in of_task],
        "task_mean_class_recall": [
            _json(mean_class_recall(targets[own], predicted[own], classes)) for own in of_task
        ],
        **overall,
        "per_class": {
            name: {metric: _json(values[c]) for metric, values in per_class.items()}
            | {"support": int(support[c])}
            for c, name in enumerate(names)
        },
        "confusion": confusion.tolist(),
        **(_by_hierarchy(parents, names, targets, predicted) if parents else {}),
    }


def _by_hierarchy(
    parents: Mapping[str, str], names: Sequence[str], targets: Integers, predicted: Integers
) -> dict[str, Any]:
    """How far answers are from right, and how often they are of the right group."""
    found = {}
    for group, members in groups(parents, names).items():
        right = within(targets, predicted, members)
        found[group] = {
            "recall": float(right.mean()) if len(right) else None,
            "support": len(right),
            "classes": [names[place] for place in members],
        }
    cost = mean_cost(targets, predicted, costs(parents, names))
    return {"hierarchical_cost": _json(cost), "per_group": found}


def from_counts(confusion: Integers) -> tuple[Integers, Integers]:
    """Targets and predictions (N,), in an order without meaning, of which these are the counts."""
    true, said = np.indices(confusion.shape).reshape(2, -1)
    return np.repeat(true, confusion.ravel()), np.repeat(said, confusion.ravel())


def summarise(stages: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The whole run in a few numbers, from the documents of `evaluate_stage` in order.

    Returns:
        `average_*` and `last_*` of accuracy and mean class recall, `forgetting_*` and
        `backward_transfer_*` of both (null with one task), and `average_negative_flips` over the
        updates (null where there was none); with a hierarchy `average_` and
        `last_hierarchical_cost`.

    Raises:
        ValueError: there are no stages, or they are not stages 1, 2, ..., n.
    """
    numbers = [stage["task"] for stage in stages]
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise ValueError(f"stages must be 1, 2, ..., n in order, got {numbers}")
    summary: dict[str, float | None] = {}
    for metric in ("accuracy", "mean_class_recall"):
        values = [stage[metric] for stage in stages]
        matrix = [stage[f"task_{metric}"] for stage in stages]
        summary[f"average_{metric}"] = average_incremental(values)
        summary[f"last_{metric}"] = values[-1]
        summary[f"forgetting_{metric}"] = forgetting(matrix)
        summary[f"backward_transfer_{metric}"] = backward_transfer(matrix)
    summary["average_negative_flips"] = _mean([stage["negative_flips"] for stage in stages])
    if all("hierarchical_cost" in stage for stage in stages):
        found = [stage["hierarchical_cost"] for stage in stages]
        summary["average_hierarchical_cost"] = average_incremental(found)
        summary["last_hierarchical_cost"] = found[-1]
    return summary


def _flips_since(previous: Predictions | None, now: Predictions) -> float | None:
    """`negative_flips` on the images of the classes that were known before the update.

    What was seen before may have been fewer images: the first ones of now.
    """
    if previous is None:
        return None
    if previous.classes > now.classes:
        raise ValueError(f"the previous stage saw {previous.classes} classes, not {now.classes}")
    targets = now.targets[: len(previous.targets)]
    if not np.array_equal(previous.targets, targets):
        raise ValueError("previous predictions are not over the same images in the same order")
    old = targets < previous.classes
    return negative_flips(targets[old], previous.predicted[old], now.predicted[: len(old)][old])


def _per_class(score: Any, targets: Integers, predicted: Integers, classes: int) -> Floats:
    """A scikit-learn score of each class; NaN where its denominator is 0."""
    if not len(targets):
        return np.full(classes, math.nan)
    values: Floats = score(
        targets, predicted, labels=range(classes), average=None, zero_division=math.nan
    )
    return values


def _check_triangular(matrix: Matrix) -> None:
    lengths = [len(row) for row in matrix]
    if not lengths or lengths != list(range(1, len(lengths) + 1)):
        raise ValueError(f"rows must have 1, 2, ..., n entries, got {lengths}")


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that exist; `None` where there are none."""
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def _json(value: float) -> float | None:
    """A plain float, or `None` for NaN, which JSON does not have."""
    return None if math.isnan(value) else float(value)
