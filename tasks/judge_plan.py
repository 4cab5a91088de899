"""Put a plan into force, and judge a learner's new version by the one that is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prefect import task

from dynammo.checkpoint import Ref, to_json
from dynammo.config import Config, layered
from dynammo.data.samples import ImageSet
from dynammo.errors import ConfigError
from dynammo.evaluation.gate import Check, Comparison, Decision, compare
from dynammo.evaluation.gate import decide as decision
from dynammo.evaluation.honesty import Honesty, measure_honesty
from dynammo.evaluation.metrics import Floats, Predictions
from dynammo.evaluation.plan import STATED, Plan, read_plan
from dynammo.evaluation.protocol import (
    Against,
    Arrived,
    Judgement,
    Measured,
    Requirement,
    Step,
    class_recalls,
    judge_by_plan,
)
from dynammo.heads.mahalanobis import mahalanobis
from dynammo.heads.statistics import ClassStatistics
from dynammo.learner.folder import LearnerError, LearnerFolder
from dynammo.learner.settings import DEPLOYED
from tasks.compare_versions import common_answers, groups_of
from tasks.evaluate import as_predictions, head_inputs
from tasks.support.stage import Stage, known_classes
from tasks.support.version import Tested, Version
from tasks.support.workspace import Context

# A change of these is a modification that no plan of this form allows.
_SETTINGS = ("seed", "image", "backbone", "adapter", "train", "memory", "merge", "head")
_NO_RESULT = ("train.cache_mb",)  # changes no result
# Conditions of the gate that no limit of a plan takes the place of.
_ALWAYS = ("comparable", "classes_kept", "learnt_from_no_less")


class Other(NamedTuple):
    """Another version of the learner: its number, and its stage measured on test sets."""

    number: int
    stage: Stage
    tests: list[Tested]


def set_plan(folder: LearnerFolder, path: Path) -> Plan:
    """Put a plan into force: the champion is the version that it authorises.

    Raises:
        ConfigError: the plan is wrong, or does not fit the champion. All problems at once.
        LearnerError: there is no champion.
    """
    plan = read_plan(path)
    with folder.lock():
        version = _champion(folder)
        known, problems = known_classes(version["stage"]), []
        if set(plan.authorised) != set(known):
            problems.append(
                f"authorised must be the classes that the champion knows: {', '.join(known)}; got "
                f"{', '.join(plan.authorised)}"
            )
        found = hash_of_tests(version["tests"])
        if plan.locked_test not in (None, found):
            problems.append(f"locked_test: the champion's test images have the hash {found}")
        if problems:
            raise ConfigError(problems)
        folder.agree(folder.store.save_json("plan", plan.model_dump(mode="json")))
    return plan


def plan_of(folder: LearnerFolder, ref: Ref | None = None) -> Plan | None:
    """A plan, or the one in force; none if there is none."""
    plans = folder.pointer()["plans"] if folder.exists and ref is None else []
    ref = plans[-1]["plan"] if plans else ref
    return None if ref is None else Plan.model_validate(folder.store.load_json(ref))


def draft(folder: LearnerFolder) -> str:
    """A plan to be filled in, for the champion as it is."""
    version = _champion(folder)
    classes = json.dumps(known_classes(version["stage"]), ensure_ascii=False)  # names may be YAML
    return f"""\
device: {folder.name}
intended_use: TO BE FILLED IN
authorised: {classes}
named: []  # - {{name: NEW, images: 50, test_images: 20, patients: 20}}
modifications: [retrain_same_classes]
locked_test: {hash_of_tests(version["tests"])}
limits:
  confidence: 0.95
  sensitivity: {{every_class: 0.5, classes: {{}}}}
  non_inferiority:
    champion: {{mean: 0.05, each_class: 0.2}}
    authorised: {{mean: 0.05, each_class: 0.2}}
  negative_flips: {{overall: 0.1, grave: {{}}}}
  ece: 0.2
rollback: {{to: champion_before, when: TO BE FILLED IN}}
signatures: []
"""


def check_stated(modifications: Sequence[str]) -> list[str]:
    """Modifications that the user states, in order and once each.

    Raises:
        ConfigError: one that is none, or that the batch tells by itself.
    """
    if wrong := [kind for kind in modifications if kind not in STATED]:
        raise ConfigError(
            [f"modification {wrong[0]!r}: expected {', '.join(STATED)}; the rest is seen"]
        )
    return sorted(set(modifications))


def arrived_images(image_set: ImageSet, classes: Sequence[str]) -> dict[str, Arrived]:
    """How much came of some classes."""
    found: dict[str, Arrived] = {}
    for name in classes:
        own = [sample for sample in image_set.samples if sample.label == name]
        found[name] = {
            "images": sum(sample.split == "train" for sample in own),
            "test_images": sum(sample.split == "test" for sample in own),
            "patients": len({sample.group or sample.sha256 for sample in own}),
        }
    return found


def with_step(
    folder: LearnerFolder,
    before: Version | None,
    modifications: Sequence[str],
    new: dict[str, Arrived] | None = None,
) -> list[Step]:
    """The steps of the version before, and that of the next one."""
    step: Step = {
        "version": folder.next_number(),
        "parent": folder.pointer()["current"] if folder.exists else 0,
        "modifications": list(modifications),
        "new": new or {},
    }
    return [*(before["steps"] if before else []), step]


def hash_of_tests(tests: Sequence[Tested], batches: Sequence[int] | None = None) -> str:
    """SHA-256 that names test images: their labels, and keyed hashes of files and patients.

    Args:
        tests: as they are kept.
        batches: only those of these.
    """
    own = {
        str(test["batch"]): test["kept"]["labels"]["sha256"]
        for test in tests
        if batches is None or test["batch"] in batches
    }
    return hashlib.sha256(to_json(own)).hexdigest()


@task(name="judge by the plan")
def judge_version(
    folder_path: str,
    config: Config,
    version: Version,
    gate: Decision,
    champion: Other | None,
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
        champion: to compare with, if there is one.
        authorised: the plan's version; none without a plan.
        context: places.
    """
    path = Path(folder_path)
    folder = LearnerFolder(path.parent, path.name)
    plan = plan_of(folder) if authorised else None
    confidence = plan.limits.confidence if plan else 0.95
    classes = known_classes(version["stage"])
    predictions, groups, evidence = _answers(version, context)
    distances = _distances(config, version, context) if predictions else None
    against = _against(version, champion, confidence, context)
    judgement: Judgement = {
        "outcome": "passed" if gate["passed"] else "failed",
        "plan": None,
        "authorised": None,
        "champion": champion.number if champion else 0,
        "outside": [],
        "requirements": _requirements(gate, evidence),
        "classes": class_recalls(
            predictions, groups, classes, against.outcome if against else None, confidence
        ),
        "confidence": confidence,
        "comparison": against.comparison if against else None,
        "cumulative": None,
        "honesty": _honesty(predictions, distances, groups, classes),
    }
    if plan is None or authorised is None:
        return judgement, gate
    first = folder.version(authorised.number)
    since = _against(version, authorised, confidence, context)
    outside, requirements = judge_by_plan(
        plan,
        Measured(
            classes=classes,
            predictions=predictions,
            groups=groups,
            distances=distances,
            evidence=evidence,
            champion=against,
            authorised=since,
            steps=_since(version, authorised.number),
            settings=_changed(first["config"], config.model_dump(mode="json")),
            test_hash=hash_of_tests(version["tests"], [test["batch"] for test in first["tests"]]),
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
        "requirements": [*_requirements({"passed": True, "checks": held}, evidence), *requirements],
        "cumulative": since.comparison if since else None,
    }
    return judgement, decided


def _champion(folder: LearnerFolder) -> Version:
    number = folder.pointer()["champion"]
    if not number:
        raise LearnerError(f"{folder.name} has no champion yet that a plan could authorise")
    found: Any = folder.version(number)
    version: Version = found
    return version


def _answers(
    version: Version, context: Context
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


def _distances(config: Config, version: Version, context: Context) -> Floats | None:
    """(N, C): of each test image to each class; none where no class statistics are kept."""
    own, store = version["stage"]["methods"][DEPLOYED], context.checkpoints
    if own["statistics"] is None or not own["features"]:
        return None
    tests = [test["kept"] for test in version["tests"]]
    sizes = [len(store.load(kept["labels"])["labels"]) for kept in tests]
    features = store.load(own["features"][0])["features"]
    inputs = head_inputs(DEPLOYED, features, store.load(own["heads"][0]), tests, sizes, context)
    statistics = ClassStatistics.of(store.load(own["statistics"]))
    found: Floats = mahalanobis(inputs, statistics, config.head.shrinkage).numpy()
    return found


def _honesty(
    predictions: Predictions | None,
    distances: Floats | None,
    groups: list[str | None],
    classes: list[str],
) -> Honesty | None:
    """On images of the classes that are known."""
    if predictions is None or not (known := predictions.targets < predictions.classes).any():
        return None
    return measure_honesty(
        predictions.scores[known],
        None if distances is None else distances[known],
        predictions.targets[known],
        [group for group, own in zip(groups, known, strict=True) if own],
        classes,
    )


def _against(
    version: Version, other: Other | None, confidence: float, context: Context
) -> Against | None:
    if other is None:
        return None
    evaluated = other.stage["methods"][DEPLOYED]["evaluated"]
    outcome = common_answers(version["stage"], version["tests"], other.stage, other.tests, context)
    if outcome is None or evaluated is None or evaluated["predictions"] is None:
        return None
    compared: Comparison = compare(outcome, confidence=confidence)
    return Against(outcome, compared, [evaluated["predictions"]["sha256"]])


def _since(version: Version, authorised: int) -> list[Step] | None:
    """The steps from the authorised version to this one; none if they do not lead there."""
    steps = version["steps"]
    starts = [place for place, step in enumerate(steps) if step["parent"] == authorised]
    return steps[starts[-1] :] if starts else None


def _changed(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Dotted names of settings that differ, of those that results depend on."""
    was, is_now = (layered({name: own[name] for name in _SETTINGS}) for own in (then, now))
    names = [*was, *(name for name in is_now if name not in was)]
    return [name for name in names if was.get(name) != is_now.get(name) and name not in _NO_RESULT]


def _requirements(gate: Decision, evidence: list[str]) -> list[Requirement]:
    return [
        {
            "name": check["name"],
            "requirement": _GATE_WORDS[check["name"]],
            "limit": None,
            "measured": None,
            "verdict": "met" if check["passed"] else "not met",
            "detail": check["detail"],
            "evidence": evidence,
        }
        for check in gate["checks"]
    ]


_GATE_WORDS = {
    "min_last_recall": "mean class recall is high enough",
    "max_gap_to_unmerged": "merging costs little",
    "comparable": "it can be compared with the version in use",
    "max_class_loss": "no class loses much",
    "classes_kept": "every class of the version in use is known",
    "learnt_from_no_less": "it has seen all that the version in use has",
}


def _limit(row: Requirement) -> str:
    return "" if row["limit"] is None else f"{row['limit']:.3f}"
