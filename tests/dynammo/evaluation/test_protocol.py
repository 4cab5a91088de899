"""The protocol: a version that holds all of a plan, and what each of its lines catches."""

from __future__ import annotations

import dataclasses
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.models import EvaluationResult, MetricThreshold
from mlflow.models.evaluation.validation import ModelValidationFailedException

from dynammo.evaluation.appearance import KINDS
from dynammo.evaluation.gate import Outcome, compare
from dynammo.evaluation.metrics import Predictions
from dynammo.evaluation.plan import Plan
from dynammo.evaluation.protocol import (
    Against,
    Counted,
    Measured,
    by_hierarchy,
    class_recalls,
    judge_by_plan,
    subgroup_gaps,
    worse_ends,
)
from tests.dynammo.evaluation.test_plan import PLAN

CLASSES = ["nevus", "melanoma", "keratosis"]
TARGETS = np.repeat([0, 1, 2], 20)
LIMITS: dict[str, Any] = {
    "sensitivity": {"every_class": 0.6, "classes": {"melanoma": 0.7}},
    "non_inferiority": {
        "champion": {"mean": 0.1, "each_class": 0.2},
        "authorised": {"mean": 0.1},
    },
    "negative_flips": {"overall": 0.1, "grave": {"melanoma": 0.2}},
    "ece": 0.2,
    "unknown_auroc": 0.9,
}


def answers(wrong: dict[int, int], unknown: int = 0) -> Predictions:
    """All right but for so many of a class; some images of an unknown class, all told apart."""
    predicted = TARGETS.copy()
    for label, count in wrong.items():
        predicted[np.flatnonzero(label == TARGETS)[:count]] = (label + 1) % 3
    targets = np.concatenate([TARGETS, np.full(unknown, 3)])
    predicted = np.concatenate([predicted, np.zeros(unknown, dtype=np.int64)])
    scores = np.where((targets < 3)[:, None], np.eye(3)[predicted] * 0.97 + 0.01, 1 / 3)
    known = np.where(targets < 3, 1.0, 0.0)
    return Predictions(targets, predicted, scores, np.full(len(targets), 0.97), known)


def against(old: dict[int, int], new: Predictions) -> Against:
    both = TARGETS < 2
    outcome = Outcome(
        TARGETS[both],
        answers(old).predicted[both],
        new.predicted[: len(TARGETS)][both],
        [None] * int(both.sum()),
        CLASSES[:2],
    )
    return Against(outcome, compare(outcome), ["b" * 64])


def measured(wrong: dict[int, int] | None = None, unknown: int = 0, **more: Any) -> Measured:
    new = answers(wrong or {}, unknown)
    arrived = {"images": 20, "test_images": 20, "patients": 30}
    step = {"version": 2, "parent": 1, "modifications": ["add_named_class"]}
    given = {
        "classes": CLASSES,
        "predictions": new,
        "looks": None,
        "groups": [None] * len(new.targets),
        "columns": {},
        "evidence": ["a" * 64],
        "champion": against({}, new),
        "authorised": against({}, new),
        "steps": [{**step, "new": {"keratosis": arrived}}],
        "settings": [],
        "test_hash": "c" * 64,
    }
    return Measured(**{**given, **more})  # type: ignore[arg-type]


def plan(**more: Any) -> Plan:
    return Plan.model_validate({**PLAN, "limits": LIMITS, "locked_test": "c" * 64, **more})


def failed(own: Measured, **more: Any) -> set[str]:
    _, rows = judge_by_plan(plan(**more), own)
    return {row["name"] for row in rows if row["verdict"] == "not met"}


def test_a_version_that_holds_all() -> None:
    outside, rows = judge_by_plan(plan(), measured())
    assert outside == []
    assert {row["name"]: row["verdict"] for row in rows} == {
        "data.keratosis": "met",
        "locked_test": "met",
        **{f"sensitivity.{name}": "met" for name in CLASSES},
        "non_inferiority.champion.mean": "met",
        "non_inferiority.champion.nevus": "met",
        "non_inferiority.champion.melanoma": "met",
        "non_inferiority.authorised.mean": "met",
        "negative_flips": "met",
        "negative_flips.melanoma": "met",
        "ece": "met",
        "unknown_auroc": "met",
    }
    sensitivity = next(row for row in rows if row["name"] == "sensitivity.nevus")
    assert sensitivity["limit"] == 0.6
    assert sensitivity["measured"] == {
        "images": 20,
        "groups": 20,
        "value": 1,
        "low": pytest.approx(0.025 ** (1 / 20)),
        "high": 1,
    }
    assert sensitivity["evidence"] == ["a" * 64]


def test_the_worse_end_of_the_interval_counts() -> None:
    # 3 of 20 missed: 0.85, from 0.62 (Clopper and Pearson); melanoma must reach 0.7.
    assert failed(measured({1: 3})) >= {"sensitivity.melanoma", "negative_flips"}
    assert "sensitivity.nevus" not in failed(measured({0: 3}))
    assert "sensitivity.nevus" in failed(measured({0: 4}))


def test_losses_against_both_versions() -> None:
    new = answers({0: 8})
    only = measured({0: 8}, authorised=against({0: 8}, new))
    assert failed(only) >= {"non_inferiority.champion.mean", "non_inferiority.champion.nevus"}
    assert "non_inferiority.authorised.mean" not in failed(only)
    assert "non_inferiority.champion.melanoma" not in failed(only)


def test_flips_of_a_grave_class() -> None:
    # 1 of 20 flips: up to 0.25; of 40 images of both classes: up to 0.13.
    assert failed(measured({1: 1})) & {"negative_flips.melanoma", "negative_flips"} == {
        "negative_flips.melanoma",
        "negative_flips",
    }
    assert "negative_flips.melanoma" not in failed(measured({0: 1}))


def test_unknown_classes_and_confidence() -> None:
    _, rows = judge_by_plan(plan(), measured(unknown=5))
    auroc = next(row for row in rows if row["name"] == "unknown_auroc")
    assert auroc["verdict"] == "met" and auroc["measured"] and auroc["measured"]["value"] == 1
    flat = measured(unknown=5)
    assert flat.predictions is not None
    blind = Predictions(
        flat.predictions.targets,
        flat.predictions.predicted,
        np.full((65, 3), 1 / 3),
        np.full(65, 0.5),  # right, and half sure: an error of 0.5
        np.zeros(65),
    )
    assert failed(flat._replace(predictions=blind)) == {"ece", "unknown_auroc"}


def test_without_unknown_images_each_class_is_one_in_turn() -> None:
    _, rows = judge_by_plan(plan(), own := measured())
    row = next(row for row in rows if row["name"] == "unknown_auroc")
    assert row["verdict"] == "met" and row["measured"] and row["measured"]["value"] == 1
    assert "each known class in turn as if unknown" in row["detail"]
    assert own.predictions is not None
    flat = dataclasses.replace(own.predictions, scores=np.full((60, 3), 1 / 3))
    assert failed(own._replace(predictions=flat)) == {"unknown_auroc"}


def test_unknown_images_that_look_unlike_are_told_apart() -> None:
    own = measured(unknown=5)
    assert own.predictions is not None
    flat = dataclasses.replace(own.predictions, scores=np.full((65, 3), 1 / 3))
    looks = np.random.default_rng(0).normal(size=(65, KINDS))
    looks[60:] += 20
    assert "unknown_auroc" in failed(own._replace(predictions=flat))
    assert "unknown_auroc" not in failed(own._replace(predictions=flat, looks=looks))


def test_what_is_not_measured_is_not_met() -> None:
    own = measured(predictions=None, groups=[], champion=None, authorised=None, test_hash="d" * 64)
    assert failed(own) == {
        "locked_test",
        *(f"sensitivity.{name}" for name in CLASSES),
        "non_inferiority.champion.mean",
        "non_inferiority.champion.each_class",
        "non_inferiority.authorised.mean",
        "negative_flips",
        "negative_flips.melanoma",
        "ece",
    }


def test_a_locked_test_set_of_which_something_was_forgotten() -> None:
    own = measured(test_hash="d" * 64)
    assert failed(own) == {"locked_test"}
    assert failed(own._replace(left_of_tests="e" * 64)) == {"locked_test"}
    left = own._replace(left_of_tests="d" * 64)
    _, rows = judge_by_plan(plan(), left)
    row = next(row for row in rows if row["name"] == "locked_test")
    assert row["verdict"] == "met"
    assert row["detail"].endswith("unchanged but for the images of what was forgotten on purpose")


def test_too_few_images_of_a_new_class() -> None:
    named = [{"name": "keratosis", "images": 21, "test_images": 21, "patients": 31}]
    _, rows = judge_by_plan(plan(named=named), measured())
    row = next(row for row in rows if row["name"] == "data.keratosis")
    assert row["verdict"] == "not met"
    assert row["detail"] == (
        "20 training images, at least 21, 20 test images, at least 21, 30 patients, at least 31"
    )


def test_what_nobody_named_is_outside() -> None:
    bare = {"named": [], "modifications": ["retrain_same_classes"], "limits": {}}
    steps = [{"version": 2, "parent": 1, "modifications": ["new_scanner"], "new": {}}]
    outside, _ = judge_by_plan(plan(**bare), measured(steps=steps, settings=["train.epochs"]))
    assert outside == [
        "class keratosis is neither authorised nor named in advance",
        "modification new_scanner is not among those allowed: retrain_same_classes",
        "settings differ from the authorised version's: train.epochs",
    ]
    outside, _ = judge_by_plan(plan(), measured(steps=None))
    assert outside == ["the version does not descend from the authorised one"]


def test_recalls_of_both_versions_on_the_same_images() -> None:
    new = answers({0: 2})
    found = class_recalls(new, [None] * 60, CLASSES, against({0: 4}, new).outcome, 0.95)
    assert found["nevus"]["new"]["value"] == 0.9
    assert found["nevus"]["old"] is not None and found["nevus"]["old"]["value"] == 0.8
    assert found["keratosis"]["old"] is None


def test_a_subgroup_that_is_found_less_often() -> None:
    """Twelve of the sixty are missed, all of them of site B; sex makes no difference."""
    limits = {"subgroups": [{"column": "site", "gap": 0.2}, {"column": "sex", "gap": 0.25}]}
    columns = {
        "site": np.array(["A", "B"])[np.arange(60) % 20 // 10].tolist(),
        "sex": ["f", "m"] * 30,
    }
    own = measured({0: 0})._replace(columns=columns)
    assert failed(own, limits=limits) == set()
    assert own.predictions is not None
    predicted = own.predictions.predicted.copy()
    for label in range(3):
        predicted[20 * label + 10 : 20 * label + 14] = (label + 1) % 3
    own = own._replace(predictions=dataclasses.replace(own.predictions, predicted=predicted))
    assert failed(own, limits=limits) == {"subgroup.site.B"}
    _, rows = judge_by_plan(plan(limits=limits), own)
    found = {row["name"]: row["measured"] for row in rows if row["name"].startswith("subgroup")}
    assert found["subgroup.site.B"] is not None and found["subgroup.site.A"] is not None
    assert found["subgroup.site.B"]["value"] == pytest.approx(-0.4)
    assert found["subgroup.site.A"]["value"] == pytest.approx(0.4)
    assert found["subgroup.site.B"]["images"] == 30
    gaps = subgroup_gaps(own.predictions, own.groups, columns["site"], 0.95)
    assert gaps["B"]["recall"] == pytest.approx(0.6) and gaps["A"]["recall"] == 1


def test_another_mix_of_classes_is_no_gap() -> None:
    """Site B has the hard class more often, and both find it equally often."""
    predicted = TARGETS.copy()
    predicted[:20] = [0, 1] * 10  # of nevus every second is missed
    given = dataclasses.replace(answers({}), predicted=predicted)
    site = ["B" if place < 16 or place > 57 else "A" for place in range(60)]
    change = subgroup_gaps(given, [None] * 60, site, 0.95)["B"]["change"]
    assert change is not None and change["value"] == pytest.approx(0)


def test_subgroups_that_are_too_small_or_not_kept() -> None:
    own = measured()._replace(columns={"site": ["A"] * 55 + ["B"] * 3 + [""] * 2})
    limit = {"column": "site", "gap": 0.9, "images": 3}

    def verdicts(**more: Any) -> dict[str, str]:
        limits = {"subgroups": [{**limit, **more}]}
        _, rows = judge_by_plan(plan(limits=limits), own)
        return {r["name"]: r["verdict"] for r in rows if r["name"].startswith("subgroup")}

    few = {"subgroup.site.": "not measured"}
    assert verdicts() == {**few, "subgroup.site.A": "met", "subgroup.site.B": "met"}
    all_few = {**few, "subgroup.site.A": "not measured", "subgroup.site.B": "not measured"}
    assert verdicts(images=20) == {**all_few, "subgroup.site": "not met"}
    assert verdicts(column="sex") == {"subgroup.sex": "not met"}
    only = {"subgroup.site.nevus.A": "not measured", "subgroup.site.nevus": "not met"}
    assert verdicts(sensitivity="nevus") == only


@pytest.mark.parametrize("wrong", [{}, {0: 1}, {1: 3}, {0: 8}, {1: 1}])
def test_mlflow_validates_the_same_numbers_as_the_plan_judges(wrong: dict[int, int]) -> None:
    _, rows = judge_by_plan(plan(), measured(wrong, unknown=5))
    ends = worse_ends(rows)
    judged = {row["name"]: row["verdict"] == "met" for row in rows if row["name"] in ends}
    assert len(judged) >= 10
    for name, (end, limit) in ends.items():
        at_most = name.startswith(("negative_flips", "ece"))
        threshold = MetricThreshold(threshold=limit, greater_is_better=not at_most)
        try:
            mlflow.validate_evaluation_results({name: threshold}, EvaluationResult({name: end}, {}))
            valid = True
        except ModelValidationFailedException:
            valid = False
        assert valid == judged[name], name


def test_what_answers_are_worth_by_what_classes_belong_to() -> None:
    parents = {"melanoma": "malignant", "carcinoma": "malignant", "nevus": "benign"}
    classes = ["nevus", "melanoma", "carcinoma"]
    # Patient p has two images of melanoma. Four of the five malignant ones are called malignant.
    counted = Counted(np.array([0, 0, 1, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 1, 0]))
    # The champion knows no carcinoma, but warts: the melanomas were called nevus and wart, and are
    # called melanoma and carcinoma now; the two of nevus right and wart, now right and melanoma.
    old = Outcome(
        np.array([0, 0, 1, 1]),
        np.array([0, 3, 0, 3]),
        np.array([0, 1, 1, 2]),
        [None] * 4,
        ["nevus", "melanoma"],
        ["carcinoma", "wart"],
    )
    found = by_hierarchy(parents, counted, ["a", "b", "p", "p", "c", "d", "e"], classes, old, 0.95)
    assert found["cost"] == pytest.approx(((0 + 1) / 2 + (0 + 0.5) / 2 + (0 + 0.5 + 1) / 3) / 3)
    assert found["both"] == {
        "old": pytest.approx(((0 + 1) / 2 + (1 + 1) / 2) / 2),
        "new": pytest.approx(((0 + 1) / 2 + (0 + 0.5) / 2) / 2),
    }
    malignant, benign = found["groups"]["malignant"], found["groups"]["benign"]
    assert malignant["classes"] == ["melanoma", "carcinoma"] and malignant["below"] is None
    recall = malignant["recall"]
    assert (recall["images"], recall["groups"], recall["value"]) == (5, 4, pytest.approx(0.8))
    assert malignant["both"] == {"old": 0.0, "new": 1.0}
    assert benign["both"] == {"old": 0.5, "new": 0.5}


def test_a_group_below_another_names_it_and_what_was_not_counted_is_not_compared() -> None:
    parents = {"melanoma": "melanocytic", "melanocytic": "malignant", "carcinoma": "malignant"}
    old = Outcome(np.array([0]), np.array([-1]), np.array([0]), [None], ["melanoma"])
    found = by_hierarchy(parents, None, [], ["nevus", "melanoma", "carcinoma"], old, 0.95)
    groups = found["groups"]
    assert (groups["melanocytic"]["below"], groups["malignant"]["below"]) == ("malignant", None)
    assert (found["cost"], found["both"]) == (None, None)
    assert groups["malignant"]["both"] is None
    assert groups["malignant"]["recall"]["value"] is None


def test_images_of_unknown_classes_are_in_no_group() -> None:
    parents = {"melanoma": "malignant"}
    given = answers({}, unknown=5)
    found = by_hierarchy(parents, given, [None] * len(given.targets), CLASSES, None, 0.95)
    assert found["cost"] == 0 and found["groups"]["malignant"]["recall"]["images"] == 20
