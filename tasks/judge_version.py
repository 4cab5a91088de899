"""Judge a learner's new version by the plan in force."""

from __future__ import annotations

from pathlib import Path

from prefect import task

from dynammo.checkpoint import Ref
from dynammo.config import Config, TrackingConfig, layered
from dynammo.evaluation.gate import Check, Decision, compare
from dynammo.evaluation.gate import decide as decision
from dynammo.evaluation.honesty import Honesty, measure_honesty, unknown_limits
from dynammo.evaluation.metrics import Floats, Predictions, from_counts
from dynammo.evaluation.protocol import (
    Against,
    Counted,
    Judgement,
    Measured,
    Requirement,
    Step,
    Verdict,
    by_hierarchy,
    class_recalls,
    judge_by_plan,
    subgroup_gaps,
)
from dynammo.learner.folder import LearnerFolder
from dynammo.learner.settings import DEPLOYED
from tasks.compare_versions import CONFIDENCE, Other, compare_with, counts_of, groups_of
from tasks.evaluate import as_predictions
from tasks.support.images import kept_columns
from tasks.support.kept import hash_without
from tasks.support.plans import hash_of_tests, plan_of
from tasks.support.stage import known_classes
from tasks.support.version import Draft, Tested, Version, config_of, read_version
from tasks.support.workspace import Context

# A change of these is a modification that no plan of this form allows.
_SETTINGS = ("seed", "image", "backbone", "adapter", "train", "memory", "merge", "head", "clinical")
_NO_RESULT = ("train.cache_mb",)  # changes no result
# Conditions of the gate that no limit of a plan takes the place of.
_ALWAYS = ("comparable", "classes_kept", "learnt_from_no_less")


@task(name="judge by the plan")
def judge_version(
    folder_path: str,
    config: Config,
    version: Draft,
    gate: Decision,
    champion: int,
    against: Against | None,
    authorised: Other | None,
    context: Context,
) -> tuple[Judgement, Decision]:
    """What the plan in force says of a version, and the gate's decision under it.

    The plan's limits take the place of the gate's settings. Without a plan the gate decides.

    Args:
        folder_path: of the learner.
        config: of the version.
        version: evaluated on its tests.
        gate: the decision by the settings.
        champion: the version in use; 0 if there is none.
        against: the comparison with it; none where nothing could be compared.
        authorised: the plan's version; none without a plan.
        context: places.
    """
    path = Path(folder_path)
    folder = LearnerFolder(path.parent, path.name)
    plan = plan_of(folder) if authorised else None
    confidence = plan.limits.confidence if plan else CONFIDENCE
    if against and confidence != CONFIDENCE:
        compared = compare(against.outcome, confidence=confidence)
        against = against._replace(comparison=compared)
    classes = known_classes(version["stage"])
    predictions, groups, evidence = tested_answers(version, context)
    looks = tested_looks(version, config.tracking, context)
    columns = _subgroups(config, version, context) if predictions else {}
    counted = counted_answers(version, context)
    if counted:
        groups, evidence = [None] * len(counted.targets), [version["counts"]["sha256"]]
    judgement: Judgement = {
        "outcome": "passed" if gate["passed"] else "failed",
        "plan": None,
        "authorised": None,
        "champion": champion,
        "outside": [],
        "requirements": _requirements(gate, champion, evidence),
        "classes": class_recalls(
            counted or predictions,
            groups,
            classes,
            against.outcome if against else None,
            confidence,
        ),
        "subgroups": {
            name: subgroup_gaps(predictions, groups, values, confidence)
            for name, values in columns.items()
        },
        "confidence": confidence,
        "comparison": against.comparison if against else None,
        "cumulative": None,
        "honesty": _honesty(predictions, looks, groups, classes, config.tracking),
    }
    if parents := config.classes.hierarchy:
        judgement["hierarchy"] = by_hierarchy(
            parents,
            counted or predictions,
            groups,
            classes,
            against.outcome if against else None,
            confidence,
        )
    if plan is None or authorised is None:
        return judgement, gate
    first = read_version(folder, authorised.number)
    since = against
    if authorised.number != champion:
        since = compare_with.fn(version, authorised, context, confidence)
    outside, requirements = judge_by_plan(
        plan,
        Measured(
            classes=classes,
            predictions=predictions,
            looks=looks,
            groups=groups,
            columns=columns,
            evidence=evidence,
            champion=against,
            authorised=since,
            steps=_since(version, authorised.number),
            settings=_changed(config_of(first), config),
            test_hash=hash_of_tests(version["tests"], [test["batch"] for test in first["tests"]]),
            left_of_tests=_left_of_tests(folder, first, version, plan.locked_test),
            counted=counted,
        ),
    )
    held = [check for check in gate["checks"] if check["name"] in _ALWAYS]
    checks: list[Check] = [
        *held,
        {
            "name": "in_plan",
            "passed": not outside,
            "detail": f"outside the plan: {'; '.join(outside)}" if outside else "in the plan",
        },
        *(
            Check(
                name=row["name"],
                passed=row["verdict"] != "not met",
                detail=f"{row['requirement']} {_limit(row)}: {row['detail']}",
            )
            for row in requirements
        ),
    ]
    decided = decision(checks)
    passed = "passed" if decided["passed"] else "failed"
    judgement = {
        **judgement,
        "outcome": "outside" if outside else passed,  # type: ignore[typeddict-item]
        "plan": folder.pointer()["plans"][-1]["plan"],
        "authorised": authorised.number,
        "outside": outside,
        "requirements": [
            *_requirements({"passed": True, "checks": held}, champion, evidence),
            *requirements,
        ],
        "cumulative": since.comparison if since else None,
    }
    return judgement, decided


def _left_of_tests(
    folder: LearnerFolder, first: Version, version: Draft, locked: str | None
) -> str | None:
    """Hash of the authorised version's test images without those of classes and batches that were
    forgotten since; none where nothing was, or where they are not the locked ones.
    """
    since = {
        name: set(version["forgotten"][name][len(first["forgotten"][name]) :])
        for name in ("batches", "classes")
    }
    if not any(since.values()) or hash_of_tests(first["tests"]) != locked:
        return None
    gone = {own["number"] for own in first["batches"] if own["hash"] in since["batches"]}
    left: list[Tested] = []
    for test in first["tests"]:
        kept = test["kept"]
        if test["batch"] not in gone and (
            digest := hash_without(kept, since["classes"], folder.store)
        ):
            labels = Ref(path=kept["labels"]["path"], sha256=digest)
            left.append({**test, "kept": {**kept, "labels": labels}})
    return hash_of_tests(left)


def tested_answers(
    version: Draft, context: Context
) -> tuple[Predictions | None, list[str | None], list[str]]:
    """Answers to the test images, the images' groups, and the hashes of both."""
    evaluated = version["stage"]["methods"][DEPLOYED]["evaluated"]
    if evaluated is None or evaluated["predictions"] is None:
        return None, [], []
    predictions = as_predictions(context.checkpoints.load(evaluated["predictions"]))
    groups = [group for test in version["tests"] for group in groups_of(test, context)]
    assert len(groups) == len(predictions.targets)
    labels = [test["kept"]["labels"]["sha256"] for test in version["tests"]]
    return predictions, groups, [evaluated["predictions"]["sha256"], *labels]


def counted_answers(version: Draft, context: Context) -> Counted | None:
    """What sites counted of a version that has no test images (`dynammo.federated.judge`)."""
    if "counts" not in version:
        return None
    return Counted(*from_counts(counts_of(version, context).confusion.numpy()))


def tested_looks(version: Draft, tracking: TrackingConfig, context: Context) -> Floats | None:
    """(N, K) of the test images' appearance (`dynammo.evaluation.appearance`); none where answers
    do not go by it, for images are not kept or too few.
    """
    evaluated = version["stage"]["methods"][DEPLOYED]["evaluated"]
    if evaluated is None or evaluated["predictions"] is None:
        return None
    saved = context.checkpoints.load(evaluated["predictions"])
    if "appearance" not in saved:
        return None
    looks, given = saved["appearance"].numpy(), as_predictions(saved)
    known = given.targets < given.classes
    limits = unknown_limits(
        given.scores[known],
        given.targets[known],
        looks[known],
        tracking.unknown_alarm,
        tracking.unknown_by_class,
    )
    return looks if limits is not None and limits.appearance is not None else None


def _subgroups(config: Config, version: Draft, context: Context) -> dict[str, list[str]]:
    """Columns of the test images to compare subgroups by: not those that are numbers."""
    columns = kept_columns([test["kept"] for test in version["tests"]], context)
    only = set(config.clinical.numbers) - set(config.retention.subgroups)
    return {name: values for name, values in columns.items() if name not in only}


def _honesty(
    predictions: Predictions | None,
    looks: Floats | None,
    groups: list[str | None],
    classes: list[str],
    tracking: TrackingConfig,
) -> Honesty | None:
    """On images of the classes that are known."""
    if predictions is None or not (known := predictions.targets < predictions.classes).any():
        return None
    return measure_honesty(
        predictions.scores[known],
        predictions.targets[known],
        [group for group, own in zip(groups, known, strict=True) if own],
        classes,
        alarm=tracking.unknown_alarm,
        by_class=tracking.unknown_by_class,
        looks=None if looks is None else looks[known],
    )


def _since(version: Draft, authorised: int) -> list[Step] | None:
    """The steps from the authorised version to this one; none if they do not lead there."""
    steps = version["steps"]
    starts = [place for place, step in enumerate(steps) if step["parent"] == authorised]
    return steps[starts[-1] :] if starts else None


def _changed(then: Config, now: Config) -> list[str]:
    """Dotted names of settings that differ, of those that results depend on."""
    was, is_now = (
        layered(own.model_dump(mode="json", include={*_SETTINGS})) for own in (then, now)
    )
    names = [*was, *(name for name in is_now if name not in was)]
    return [name for name in names if was.get(name) != is_now.get(name) and name not in _NO_RESULT]


def _requirements(gate: Decision, champion: int, evidence: list[str]) -> list[Requirement]:
    def verdict(check: Check) -> Verdict:
        if not champion and check["name"] != "min_last_recall":
            return "not measured"  # all others compare with the version in use
        return "met" if check["passed"] else "not met"

    return [
        {
            "name": check["name"],
            "requirement": _GATE_WORDS[check["name"]],
            "limit": None,
            "measured": None,
            "verdict": verdict(check),
            "detail": check["detail"],
            "evidence": evidence,
        }
        for check in gate["checks"]
    ]


_GATE_WORDS = {
    "min_last_recall": "mean class recall is high enough",
    "comparable": "it can be compared with the version in use",
    "max_class_loss": "no class loses much",
    "classes_kept": "every class of the version in use is known, or was forgotten on purpose",
    "learnt_from_no_less": "it has seen all that the version in use has",
}


def _limit(row: Requirement) -> str:
    return "" if row["limit"] is None else f"{row['limit']:.3f}"
