"""What the flows of a learner share: taking it up, writing its next version, showing it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import get_run_logger

from dynammo.checkpoint import to_json, write_atomically
from dynammo.config import Config
from dynammo.learner.folder import LearnerError, LearnerFolder
from dynammo.learner.settings import DEPLOYED
from flows.learning import evaluate_methods
from tasks.compare_versions import answers_known, compare_with_champion, decide
from tasks.judge_plan import Other, judge_version
from tasks.publish_version import REGISTERED, move_alias, register_version, withdraw, write_model
from tasks.purge import enforce
from tasks.report_change import write_change_report
from tasks.retain import reduce_to_features, strip
from tasks.support.caching import code_version
from tasks.support.stage import Stage, known_classes
from tasks.support.sweep import sweep
from tasks.support.version import (
    Tested,
    Version,
    config_of,
    recall_of,
)
from tasks.support.workspace import RESULTS, Context, versions
from tasks.track import CODE


@contextmanager
def taken_up(folder: LearnerFolder, step: dict[str, Any]) -> Iterator[None]:
    """Hold a learner for a step that changes it. What a killed step left is used, if it was the
    same step, and removed otherwise.

    Args:
        folder: of the learner.
        step: what is done, by which a killed one is known again.

    Raises:
        LearnerError: somebody else is changing it, or it is damaged.
    """
    with folder.lock():
        sweep(folder.path)
        if folder.exists and (problems := folder.problems()):
            raise LearnerError(
                f"{problems[0]}; {folder.name} can be rolled back to a version before"
            )
        marker = folder.work / "step.json"
        step = {**step, "parent": folder.pointer()["current"] if folder.exists else 0}
        if not marker.is_file() or marker.read_bytes() != to_json(step):
            clear(folder)
        if folder.exists:
            write_model(folder)
            publish_pending(folder)
        write_atomically(marker, to_json(step))
        yield
        clear(folder)


def clear(folder: LearnerFolder) -> None:
    """Remove what a step leaves: decoded images, objects of no version, cached results."""
    journal = folder.work / "results.txt"
    if journal.is_file():
        for key in journal.read_text(encoding="utf-8").split():
            (RESULTS / key).unlink(missing_ok=True)
    folder.tidy()


def measured_tests(
    config: Config,
    version: Version,
    stage: Stage,
    before: Stage | None,
    tests: list[Tested],
    context: Context,
) -> Stage:
    """The stage with every method measured on the kept test images; as it is where there are none.

    Args:
        config: of the new version.
        version: for its backbone.
        stage: what is known.
        before: the stage before, if negative flips are to be counted.
        tests: what is kept.
        context: places.
    """
    kept = [test["kept"] for test in tests]
    known = set(known_classes(stage))
    if not any(known & set(own["names"]) for own in kept):
        return stage
    later = sorted({name for own in kept for name in own["names"]} - known)
    return evaluate_methods(
        config, version["backbone"], stage, before, kept, [later] if later else [], context
    )


def write_version(folder: LearnerFolder, config: Config, version: Version, context: Context) -> int:
    """Compare a new version with the champion, let the gate decide, by the plan if there is one,
    carry out the retention, and write it. The learner is at it then.

    Args:
        folder: of the learner.
        config: of the version.
        version: evaluated; its `gate` and `comparison` are filled in here.
        context: places.

    Returns:
        Its number.
    """
    stage, tests = version["stage"], version["tests"]
    champion, number = _champion(folder)
    comparison, against = None, None
    if champion is not None:
        old, old_tests = _as_champion(champion, tests, config, context)
        comparison = compare_with_champion(stage, tests, old, old_tests, context)
        against = Other(number, old, old_tests)
    gate = decide(
        config,
        recall_of(folder, version),
        comparison,
        champion,
        number,
        stage,
        [batch["hash"] for batch in version["batches"]],
        version["forgotten"],
    )
    authorised = _authorised(folder, against, tests, config, context)
    judgement, gate = judge_version(
        str(folder.path), config, version, gate, against, authorised, context
    )
    retention = config.retention
    if retention.test == "features" and stage["methods"][DEPLOYED]["evaluated"] is not None:
        tests = reduce_to_features(tests, stage, context)
    elif retention.test == "nothing":
        tests = []
    kept = strip(stage, parts=retention.train != "nothing", predictions=retention.test != "nothing")
    final: Version = {
        **version,
        "stage": kept,
        "tests": tests,
        "comparison": comparison,
        "gate": gate,
        "judgement": judgement,
        "notes": [*version["notes"], *_continued(folder, version)],
    }
    made = folder.commit(dict(final), champion=gate["passed"])
    if removed := enforce(folder, retention):
        get_run_logger().info("%d images removed: retention's limits", removed)
        withdraw(folder)
    write_change_report(folder, made)
    _tell(folder, made)
    return made


def show_version(folder: LearnerFolder) -> None:
    """The champion's model as files, and the version in MLflow."""
    write_model(folder)
    publish_pending(folder)


def publish_pending(folder: LearnerFolder) -> None:
    """Register the current version in MLflow, unless it is; the alias follows the champion."""
    pointer = folder.pointer()
    noted = folder.path / REGISTERED
    known: dict[str, str] = {}
    if noted.is_file():
        known = json.loads(noted.read_text(encoding="utf-8"))
    current = str(pointer["current"])
    if current not in known and (made := register_version(str(folder.path), pointer["current"])):
        known[current] = made
        write_atomically(noted, to_json(known))
    champion = pointer["champion"]
    if champion and str(champion) in known:
        reason = pointer["champions"][-1]["reason"]
        move_alias(folder, known[str(champion)], champion, reason)


def now_known() -> tuple[str, dict[str, str]]:
    """The code's hash, and the versions of what numbers depend on: recorded, never demanded."""
    return code_version(*CODE), versions()


def _champion(folder: LearnerFolder) -> tuple[Version | None, int]:
    if not folder.exists or not (number := folder.pointer()["champion"]):
        return None, 0
    document: Any = folder.version(number)
    return document, number


def _authorised(
    folder: LearnerFolder,
    champion: Other | None,
    tests: list[Tested],
    config: Config,
    context: Context,
) -> Other | None:
    """The version that the plan in force authorises, measured; none without a plan."""
    plans = folder.pointer()["plans"] if folder.exists else []
    if not plans:
        return None
    number = plans[-1]["authorised"]
    if champion is not None and champion.number == number:
        return champion
    document: Any = folder.version(number)
    return Other(number, *_as_champion(document, tests, config, context))


def _as_champion(
    champion: Version, tests: list[Tested], config: Config, context: Context
) -> tuple[Stage, list[Tested]]:
    """The champion measured on test images: as it was, where that serves, or again."""
    if answers_known(champion, tests):
        return champion["stage"], champion["tests"]
    own = {test["batch"]: test for test in champion["tests"]}
    usable = []
    for test in tests:
        if test["batch"] in own:
            usable.append(own[test["batch"]])
        elif test["kept"]["images"] is not None:
            usable.append(test)
    stage: Stage = {
        **champion["stage"],
        "methods": {DEPLOYED: {**champion["stage"]["methods"][DEPLOYED], "evaluated": None}},
    }
    then = config_of(champion)
    return measured_tests(then, champion, stage, None, usable, context.named("champion")), usable


def _continued(folder: LearnerFolder, version: Version) -> list[str]:
    """What differs from the environment that the parent was made in."""
    if not version["parent"]:
        return []
    before: Any = folder.version(version["parent"])
    notes = [
        f"continued with {name} {now}, after {before['versions'].get(name, 'none')}"
        for name, now in version["versions"].items()
        if before["versions"].get(name) != now
    ]
    if before["code"] != version["code"]:
        notes.append("continued with other code")
    return notes


def _tell(folder: LearnerFolder, number: int) -> None:
    logger, version = get_run_logger(), folder.version(number)
    recall = recall_of(folder, version)  # type: ignore[arg-type]
    told = "cannot be measured" if recall is None else f"mean class recall {100 * recall:.1f}%"
    logger.info("%s is at version %d: %s", folder.name, number, told)
    for check in version["gate"]["checks"]:
        if not check["passed"]:
            logger.warning("not champion: %s", check["detail"])
    for note in version["notes"]:
        logger.warning(note)
