"""Metrics against arithmetic by hand, against scikit-learn, and against what they must never do."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from dynammo.evaluation.metrics import (
    Predictions,
    accuracy,
    average_incremental,
    backward_transfer,
    class_auroc,
    class_precision,
    class_recall,
    classwise_calibration_error,
    confusion_counts,
    evaluate_counts,
    evaluate_stage,
    expected_calibration_error,
    forgetting,
    mean_class_recall,
    negative_flips,
    open_set_auroc,
    open_set_fpr95,
    summarise,
    task_forgetting,
)

# Six images: class 0 is predicted 0 0 1, class 1 is predicted 1 1, class 2 is predicted 0.
TARGETS = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 1, 0])


def make(
    targets: list[int], predicted: list[int], classes: int, knownness: list[float] | None = None
) -> Predictions:
    """Predictions with a score of 0.8 for the predicted class and equal shares of the rest."""
    scores = np.full((len(targets), classes), 0.2 / max(1, classes - 1))
    scores[np.arange(len(targets)), predicted] = 0.8
    known = np.array(knownness) if knownness is not None else np.ones(len(targets))
    confidence = np.full(len(targets), 0.8)
    return Predictions(np.array(targets), np.array(predicted), scores, confidence, known)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int]:
    """Targets and predictions of 1 to 30 images over 1 to 5 classes."""
    classes = draw(st.integers(1, 5))
    labels = st.integers(0, classes - 1)
    pairs = draw(st.lists(st.tuples(labels, labels), min_size=1, max_size=30))
    targets, predicted = np.array(pairs, dtype=np.int64).T
    return targets, predicted, classes


# --- one metric at a time -------------------------------------------------------------------------


def test_accuracy() -> None:
    assert accuracy(TARGETS, PREDICTED) == 4 / 6
    assert math.isnan(accuracy(np.array([]), np.array([])))


def test_recall_and_precision() -> None:
    # Class 0: 2 of its 3 found; predicted 3 times, 2 of them right. Class 1: 2 of 2; 2 of 3.
    # Class 2: 0 of 1; never predicted. Class 3: no image, never predicted.
    np.testing.assert_array_equal(class_recall(TARGETS, PREDICTED, 4), [2 / 3, 1, 0, np.nan])
    np.testing.assert_array_equal(
        class_precision(TARGETS, PREDICTED, 4), [2 / 3, 2 / 3, np.nan, np.nan]
    )
    # (2/3 + 1 + 0) / 3: the class without images does not count.
    assert mean_class_recall(TARGETS, PREDICTED, 4) == pytest.approx(5 / 9)


def test_nothing_to_measure_is_nan() -> None:
    nothing = np.array([], dtype=np.int64)
    assert np.isnan(class_recall(nothing, nothing, 2)).all()
    assert np.isnan(class_precision(nothing, nothing, 2)).all()
    assert math.isnan(mean_class_recall(nothing, nothing, 2))
    assert math.isnan(expected_calibration_error(nothing, nothing, np.array([])))


def test_confusion_counts() -> None:
    assert confusion_counts(TARGETS, PREDICTED, 3).tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_class_auroc() -> None:
    scores = np.array([[0.9, 0.5, 0.1], [0.4, 0.5, 0.6], [0.6, 0.5, 0.2]])
    # Class 0 has images 0 and 1 (0.9, 0.4) against image 2 (0.6): 1 of 2 pairs in order.
    # Class 1 has image 2, all scores tied: one half. Class 2 has no image.
    np.testing.assert_array_equal(class_auroc(np.array([0, 0, 1]), scores), [0.5, 0.5, np.nan])
    assert np.isnan(class_auroc(np.zeros(3, dtype=int), scores)).all()  # no "others", no images


def test_calibration_error_of_each_class() -> None:
    # Two bins. Of class 0 below 1/2: p = 0.2, 0.4, none of it, so |0 - 0.3|; above: 0.9, 0.7 and
    # one of two, so |0.5 - 0.8|: (2 * 0.3 + 2 * 0.3) / 4. Class 1 is its mirror; 2 is no share.
    targets = np.array([1, 1, 0, 1])
    first = np.array([0.2, 0.4, 0.9, 0.7])
    scores = np.stack([first, 1 - first, first + 1], axis=1)
    found = classwise_calibration_error(targets, scores, bins=2)
    assert found[:2].tolist() == pytest.approx([0.3, 0.3]) and math.isnan(found[2])
    assert np.isnan(classwise_calibration_error(targets[:0], scores[:0, :2])).all()


def test_expected_calibration_error() -> None:
    # 2 bins, (0, 0.5] and (0.5, 1]; an edge belongs below, 0 to the first bin.
    # First: confidences 0, 0.5, right 1 of 2: |1/2 - 0.25| = 0.25, weight 2/4.
    # Second: confidences 0.6, 1.0, right 2 of 2: |1 - 0.8| = 0.2, weight 2/4. Sum 0.225.
    targets, predicted = np.array([0, 0, 0, 0]), np.array([1, 0, 0, 0])
    confidence = np.array([0.0, 0.5, 0.6, 1.0])
    assert expected_calibration_error(targets, predicted, confidence, bins=2) == pytest.approx(
        0.225
    )
    # Had 0.5 been in the second bin: |0 - 0|/4 + 3/4 * |1 - 0.7| = 0.225 too; so another pin,
    # right at 0.5, wrong at 0.6. Together they would give |1 - 1.1| / 2 = 0.05;
    # apart they give 1/2 * |1 - 0.5| + 1/2 * |0 - 0.6| = 0.55.
    edge = expected_calibration_error(
        np.array([0, 0]), np.array([0, 1]), np.array([0.5, 0.6]), bins=2
    )
    assert edge == pytest.approx(0.55)


def test_every_edge_of_the_fifteen_bins_belongs_below() -> None:
    # Right at k/15, wrong a hair above: apart the gaps add up, together they would nearly cancel.
    for k in range(1, 15):
        confidence = np.array([k / 15, k / 15 + 1e-9])
        error = expected_calibration_error(np.array([0, 0]), np.array([0, 1]), confidence)
        assert error == pytest.approx((1 - k / 15 + k / 15) / 2)


def test_open_set_auroc() -> None:
    known = np.array([True, True, False, False])
    # Pairs (known, unknown): 3>1, 3>2, 2>1 in order, 2=2 a tie: (3 + 1/2) / 4.
    assert open_set_auroc(known, np.array([3.0, 2.0, 1.0, 2.0])) == 0.875
    assert open_set_auroc(~known, np.array([3.0, 2.0, 1.0, 2.0])) == 0.125
    assert open_set_auroc(known, np.ones(4)) == 0.5


def test_open_set_fpr95() -> None:
    known = np.array([True] * 20 + [False] * 4)
    knownness = np.array([*range(1, 21), 0.5, 1.5, 2.0, 30.0])
    # 95 % of 20 is 19, so the threshold is the 19th highest, 2.0; of the unknown, 2.0 (tied) and
    # 30.0 pass: 2 of 4.
    assert open_set_fpr95(known, knownness) == 0.5
    assert open_set_fpr95(known, np.ones(24)) == 1.0  # nothing tells them apart
    assert open_set_fpr95(known, known.astype(float)) == 0.0


@pytest.mark.parametrize("known", [np.ones(3, dtype=bool), np.zeros(3, dtype=bool)])
def test_open_set_needs_known_and_unknown(known: np.ndarray[Any, Any]) -> None:
    assert open_set_auroc(known, np.arange(3.0)) is None
    assert open_set_fpr95(known, np.arange(3.0)) is None


def test_negative_flips() -> None:
    targets = np.array([0, 0, 1, 1])
    before, after = np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1])
    # Image 1 went from right to wrong; image 2 from wrong to right does not count: 1 of 4.
    assert negative_flips(targets, before, after) == 0.25
    assert negative_flips(targets[:0], before[:0], after[:0]) is None
    with pytest.raises(ValueError, match="aligned"):
        negative_flips(targets, before[:3], after)


def test_average_incremental() -> None:
    assert average_incremental([0.9, 0.6, 0.6]) == pytest.approx(0.7)
    with pytest.raises(ValueError, match="at least one"):
        average_incremental([])


MATRIX = [[0.9], [0.95, 0.8], [0.7, 0.85, 0.6]]


def test_forgetting_takes_the_best_before_the_last() -> None:
    # Task 1: max(0.9, 0.95) - 0.7 = 0.25. Task 2: 0.8 - 0.85 = -0.05, as the last does not count.
    assert task_forgetting(MATRIX) == pytest.approx([0.25, -0.05])
    assert forgetting(MATRIX) == pytest.approx(0.1)


def test_backward_transfer() -> None:
    # Task 1: 0.7 - 0.9 = -0.2. Task 2: 0.85 - 0.8 = 0.05.
    assert backward_transfer(MATRIX) == pytest.approx(-0.075)


def test_one_task_forgets_nothing() -> None:
    assert forgetting([[0.9]]) is None
    assert backward_transfer([[0.9]]) is None


def test_tasks_without_test_images_are_left_out() -> None:
    matrix: list[list[float | None]] = [[None], [None, 0.8], [None, 0.6, 0.9]]
    assert forgetting(matrix) == pytest.approx(0.2)
    assert backward_transfer(matrix) == pytest.approx(-0.2)
    assert forgetting([[None], [None, 0.8]]) is None


@pytest.mark.parametrize("matrix", [[], [[1.0, 2.0]], [[1.0], [1.0]]])
def test_matrix_must_be_triangular(matrix: list[list[float]]) -> None:
    for metric in (forgetting, backward_transfer):
        with pytest.raises(ValueError, match="rows must have"):
            metric(matrix)


# --- properties -----------------------------------------------------------------------------------


@given(labelled())
def test_mean_class_recall_is_balanced_accuracy(
    data: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int],
) -> None:
    targets, predicted, classes = data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are predicted but absent
        expected = balanced_accuracy_score(targets, predicted)
    assert mean_class_recall(targets, predicted, classes) == pytest.approx(expected)


@settings(max_examples=40)
@given(labelled(), st.randoms(use_true_random=False))
def test_stage_is_bounded_and_indifferent_to_the_order_of_images(
    data: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int], random: Any
) -> None:
    targets, predicted, classes = data
    targets = np.append(targets, [0, classes])  # at least one known and one unknown image
    predicted = np.append(predicted, [0, 0])
    generator = np.random.default_rng(random.randint(0, 2**32))
    scores = generator.random((len(targets), classes)).round(1)  # rounded, for ties
    confidence = generator.random(len(targets)).round(2)
    knownness = generator.normal(size=len(targets)).round(1)
    now = Predictions(targets, predicted, scores, confidence, knownness)
    tasks = [[f"c{i}" for i in range(classes)], ["later"]]

    document = evaluate_stage(now, tasks, 1)
    order = generator.permutation(len(targets))
    assert flat(evaluate_stage(now.take(order), tasks, 1)) == pytest.approx(flat(document))
    confusion = np.array(document["confusion"])
    assert confusion.sum() == np.count_nonzero(targets < classes)
    for name in ("accuracy", "mean_class_recall", "ece", "open_set_auroc", "open_set_fpr95"):
        assert 0 <= document[name] <= 1
    for values in document["per_class"].values():
        for name in ("recall", "precision", "auroc"):
            assert values[name] is None or 0 <= values[name] <= 1


def flat(document: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a stage document, one level deep, for approximate comparison."""
    numbers = {k: v for k, v in document.items() if isinstance(v, int | float)}
    for name, values in document["per_class"].items():
        numbers |= {f"{name}.{k}": v for k, v in values.items() if v is not None}
    return numbers


@given(labelled())
def test_perfect_and_unchanged_predictions(
    data: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int],
) -> None:
    targets, predicted, classes = data
    assert accuracy(targets, targets) == 1
    assert mean_class_recall(targets, targets, classes) == 1
    assert expected_calibration_error(targets, targets, np.ones(len(targets))) == 0
    assert negative_flips(targets, predicted, predicted) == 0
    assert negative_flips(targets, predicted, targets) == 0
    assert negative_flips(targets, targets, predicted) == pytest.approx(
        1 - accuracy(targets, predicted)
    )


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_constant_tasks_neither_forget_nor_improve(values: list[float]) -> None:
    matrix = [values[: i + 1] for i in range(len(values))]
    assert forgetting(matrix) == 0
    assert backward_transfer(matrix) == 0


@given(st.data())
def test_forgetting_is_at_least_minus_backward_transfer(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 5))
    row = st.floats(0, 1)
    matrix = [data.draw(st.lists(row, min_size=i, max_size=i)) for i in range(1, count + 1)]
    lost, gained = forgetting(matrix), backward_transfer(matrix)
    assert lost is not None
    assert gained is not None
    assert -1 <= -gained <= lost + 1e-12 <= 1 + 1e-9  # the best earlier value is >= the first


# --- a whole stage --------------------------------------------------------------------------------

TASKS = [["a", "b"], ["c"], ["d"]]
# Two images of a, one of b, two of c, one of d; after task 2, d is unknown.
ALL = [0, 0, 1, 2, 2, 3]


def test_first_stage() -> None:
    now = make(ALL, [0, 1, 1, 0, 0, 0], 2, knownness=[3, 2, 1, 0, 0, 0])
    document = evaluate_stage(now, TASKS, 1)
    assert document["task"] == 1
    assert document["classes"] == ["a", "b"]
    assert document["accuracy"] == pytest.approx(2 / 3)  # the three images of a and b
    assert document["mean_class_recall"] == pytest.approx((1 / 2 + 1) / 2)
    assert document["task_accuracy"] == pytest.approx([2 / 3])
    assert document["negative_flips"] is None
    assert document["ece"] == pytest.approx(0.8 - 2 / 3)  # confidence 0.8 throughout
    assert document["open_set_auroc"] == 1
    assert document["open_set_fpr95"] == 0
    assert document["per_class"]["b"] == {
        "recall": 1,
        "precision": 0.5,
        "auroc": 0.75,
        # Scores of b are 0.2 of an a, and 0.8 of an a and a b: (|0 - 0.2| + |1 - 1.6|) / 3.
        "calibration": pytest.approx(0.8 / 3),
        "support": 1,
    }
    assert document["confusion"] == [[1, 1], [0, 1]]


def test_second_stage() -> None:
    before = make(ALL, [0, 1, 1, 0, 0, 0], 2)
    now = make(ALL, [2, 0, 1, 2, 0, 2], 3)
    document = evaluate_stage(now, TASKS, 2, before)
    assert document["classes"] == ["a", "b", "c"]
    # Known images 0 0 1 2 2 are predicted 2 0 1 2 0: 3 of 5 right.
    assert document["accuracy"] == pytest.approx(3 / 5)
    assert document["mean_class_recall"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    # Task 1: images 0 0 1, the first lost to class c (all seen classes compete): 2 of 3.
    # Task 2: 1 of 2.
    assert document["task_accuracy"] == pytest.approx([2 / 3, 1 / 2])
    assert document["task_mean_class_recall"] == pytest.approx([3 / 4, 1 / 2])
    # Of the three old images, image 0 was right and is wrong; image 1 the other way round.
    assert document["negative_flips"] == pytest.approx(1 / 3)
    assert document["confusion"] == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert document["open_set_auroc"] == 0.5  # knownness is 1 throughout


def test_last_stage_has_no_unknowns() -> None:
    document = evaluate_stage(make(ALL, ALL, 4), TASKS, 3, make(ALL, [0, 0, 1, 2, 2, 0], 3))
    assert document["accuracy"] == document["mean_class_recall"] == 1
    assert document["negative_flips"] == 0
    assert document["open_set_auroc"] is document["open_set_fpr95"] is None


def test_class_and_task_without_test_images_are_null() -> None:
    document = evaluate_stage(make([0, 0], [0, 1], 3), [["a", "b"], ["c"]], 2)
    assert document["mean_class_recall"] == 0.5  # of class a alone
    assert document["task_accuracy"] == [0.5, None]
    assert document["task_mean_class_recall"] == [0.5, None]
    assert document["per_class"]["b"] == {
        "recall": None, "precision": 0, "auroc": None,
        "calibration": pytest.approx(0.45), "support": 0,
    }  # fmt: skip
    assert document["per_class"]["c"]["precision"] is None
    json.dumps(document, allow_nan=False)


def test_one_class_a_task_raises_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        document = evaluate_stage(make([0, 0, 1], [0, 0, 0], 1), [["a"], ["b"]], 1)
    assert document["accuracy"] == 1
    assert document["confusion"] == [[2]]


def test_predicted_need_not_be_the_highest_score() -> None:
    # The unmerged variant picks the task first, so its choice may differ from the highest score.
    scores = np.array([[0.9, 0.1], [0.8, 0.3]])
    now = Predictions(np.array([1, 0]), np.array([1, 0]), scores, np.ones(2), np.ones(2))
    assert evaluate_stage(now, [["a", "b"]], 1)["accuracy"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((make(ALL, ALL, 4), TASKS, 0), r"stage must lie in 1\.\.3, got 0"),
        ((make(ALL, ALL, 4), TASKS, 4), r"stage must lie in 1\.\.3, got 4"),
        ((make(ALL, ALL, 4), TASKS, 2), "3 classes are seen at stage 2, the scores have 4"),
        ((make([0, 4], [0, 0], 2), TASKS, 1), "targets must be below 4"),
        ((make([2, 3], [0, 0], 2), TASKS, 1), "no test image is of a class seen"),
        ((make(ALL, ALL, 4), TASKS, 3, make(ALL, ALL, 5)), "previous stage saw 5 classes, not 4"),
        ((make(ALL, ALL, 4), TASKS, 3, make(ALL[::-1], [0] * 6, 3)), "same order"),
    ],
)
def test_contradicting_arguments_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_stage(*arguments)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scores", np.ones(2), r"scores must be \(N, C\)"),
        ("scores", np.ones((0, 2)), r"scores must be \(N, C\)"),
        ("scores", np.array([[1, np.nan], [0, 1]]), "scores must be finite, got 1"),
        ("targets", np.array([0]), r"targets must have shape \(2,\)"),
        ("targets", np.array([0, -1]), "targets must not be negative, got -1"),
        ("targets", np.array([0.0, 1.0]), "targets must be integers, got float64"),
        ("predicted", np.array([0, 2]), "predicted must be below C = 2, got 2"),
        ("confidence", np.array([0.5, 1.5]), r"confidence must lie in \[0, 1\], got 0.5 to 1.5"),
        ("knownness", np.array([0, np.inf]), "knownness must be finite"),
    ],
)
def test_bad_predictions_are_refused(field: str, value: Any, message: str) -> None:
    good: dict[str, Any] = {
        "targets": np.array([0, 1]),
        "predicted": np.array([0, 1]),
        "scores": np.eye(2),
        "confidence": np.ones(2),
        "knownness": np.zeros(2),
    }
    Predictions(**good)
    with pytest.raises(ValueError, match=message):
        Predictions(**(good | {field: value}))


# --- a whole run ----------------------------------------------------------------------------------


def test_summarise() -> None:
    first = make(ALL, [0, 1, 1, 0, 0, 0], 2)
    second = make(ALL, [2, 0, 1, 2, 0, 2], 3)
    third = make(ALL, [0, 3, 3, 2, 2, 3], 4)
    stages = [
        evaluate_stage(first, TASKS, 1),
        evaluate_stage(second, TASKS, 2, first),
        evaluate_stage(third, TASKS, 3, second),
    ]
    # a[i][j]: 2/3; 2/3 1/2; 1/3 1 1. Accuracy: 2/3, 3/5, 4/6.
    # Mean class recall by task: 3/4; 3/4 1/2; 1/4 1 1. Overall: 3/4, 2/3, (1/2 + 0 + 1 + 1) / 4.
    # Flips: 1 of 3 old images at stage 2; at stage 3, of 0 0 1 2 2, image 1 (a) and image 2 (b)
    # were right and are wrong: 2 of 5.
    assert summarise(stages) == pytest.approx(
        {
            "average_accuracy": (2 / 3 + 3 / 5 + 4 / 6) / 3,
            "last_accuracy": 4 / 6,
            "average_mean_class_recall": (3 / 4 + 2 / 3 + 5 / 8) / 3,
            "last_mean_class_recall": 5 / 8,
            "forgetting_accuracy": ((2 / 3 - 1 / 3) + (1 / 2 - 1)) / 2,
            "forgetting_mean_class_recall": ((3 / 4 - 1 / 4) + (1 / 2 - 1)) / 2,
            "backward_transfer_accuracy": ((1 / 3 - 2 / 3) + (1 - 1 / 2)) / 2,
            "backward_transfer_mean_class_recall": ((1 / 4 - 3 / 4) + (1 - 1 / 2)) / 2,
            "average_negative_flips": (1 / 3 + 2 / 5) / 2,
        }
    )


def test_summary_of_one_task() -> None:
    summary = summarise([evaluate_stage(make([0, 1], [0, 1], 2), [["a", "b"]], 1)])
    assert summary["average_accuracy"] == summary["last_accuracy"] == 1
    undefined = {name for name, value in summary.items() if value is None}
    assert undefined == {
        "forgetting_accuracy",
        "forgetting_mean_class_recall",
        "backward_transfer_accuracy",
        "backward_transfer_mean_class_recall",
        "average_negative_flips",
    }


def test_summary_needs_every_stage_in_order() -> None:
    stage = evaluate_stage(make([0, 1], [0, 1], 2), [["a", "b"]], 1)
    for stages in ([], [stage, stage], [stage | {"task": 2}]):
        with pytest.raises(ValueError, match="stages must be 1, 2"):
            summarise(stages)


def test_what_classes_belong_to_adds_the_cost_of_answers_and_the_recall_of_groups() -> None:
    parents = {"mel": "malignant", "bcc": "malignant", "nv": "benign", "bkl": "benign"}
    tasks = [["mel", "nv"], ["bcc"], ["bkl"]]
    # At stage 2: mel is called mel, bcc (1/2) and nv (1); nv is called bcc (1); bcc is called bcc;
    # bkl is not learnt yet. Height 2: malignant is of height 1.
    predictions = make([0, 0, 0, 1, 2, 3], [0, 2, 1, 2, 2, 0], 3)
    found = evaluate_stage(predictions, tasks, 2, parents=parents)
    assert found["hierarchical_cost"] == pytest.approx(((0 + 1 / 2 + 1) / 3 + 1 + 0) / 3)
    assert found["per_group"] == {
        "malignant": {"recall": 0.75, "support": 4, "classes": ["mel", "bcc"]},
        "benign": {"recall": 0.0, "support": 1, "classes": ["nv"]},
    }
    without = evaluate_stage(predictions, tasks, 2)
    assert found.keys() - without.keys() == {"hierarchical_cost", "per_group"}
    assert {key: found[key] for key in without} == without
    counted = evaluate_counts(np.array(found["confusion"]), tasks[:2], None, parents)
    assert (counted["hierarchical_cost"], counted["per_group"]) == (
        found["hierarchical_cost"],
        found["per_group"],
    )
    assert "per_group" not in evaluate_counts(np.array(found["confusion"]), tasks[:2], None)


def test_a_group_without_test_images_has_no_recall() -> None:
    found = evaluate_stage(make([1], [1], 2), [["mel", "nv"]], 1, parents={"mel": "malignant"})
    assert found["per_group"]["malignant"] == {"recall": None, "support": 0, "classes": ["mel"]}


def test_the_summary_has_the_cost_where_every_stage_has_it() -> None:
    first = evaluate_stage(make([0], [0], 1), [["mel"]], 1, parents={"mel": "malignant"})
    second = evaluate_stage(
        make([0, 1], [1, 1], 2), [["mel"], ["nv"]], 2, parents={"mel": "malignant"}
    )
    summary = summarise([first, second])
    assert summary["last_hierarchical_cost"] == 0.5  # of mel all, at the root, of nv none
    assert summary["average_hierarchical_cost"] == 0.25
    del first["hierarchical_cost"]
    assert "last_hierarchical_cost" not in summarise([first, second])
