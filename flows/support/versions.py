"""What all flows of a learner do: take it up, measure its next version, judge it and write it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import get_run_logger

from dynammo.checkpoint import Ref, to_json, write_atomically
from dynammo.config import Config
from dynammo.learner.folder import LearnerError, LearnerFolder
from dynammo.learner.settings import DEPLOYED
from flows.support.learning import evaluate_methods
from tasks.compare_versions import Other, answers_known, compare_with, decide
from tasks.judge_version import judge_version
from tasks.publish_version import show_version, withdraw
from tasks.purge import enforce
from tasks.report_change import write_change_report
from tasks.retain import retained
from tasks.support.stage import Stage, known_classes
from tasks.support.sweep import sweep
from tasks.support.version import (
    WAITS,
    Draft,
    Tested,
    Version,
    by_hand,
    config_of,
    read_version,
    recall_of,
    waits,
)
from tasks.support.workspace import RESULTS, Context


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
        marker = _marker(folder)
        step = {**step, "parent": folder.pointer()["current"] if folder.exists else 0}
        if not marker.is_file() or marker.read_bytes() != to_json(step):
            _clear(folder)
        if folder.exists:
            show_version(folder)
        write_atomically(marker, to_json(step))
        yield
        _close(folder)


def killed_when_written(folder: LearnerFolder) -> dict[str, Any]:
    """The step, as `taken_up` notes it, that has made the current version and was killed before all
    of it was done; empty if there is no such. Given again it has only `finish_killed` left to do.
    """
    marker = _marker(folder)
    if not folder.exists or not marker.is_file():
        return {}
    step: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))
    return step if step["parent"] == read_version(folder)["parent"] else {}


def finish_killed(folder: LearnerFolder) -> dict[str, Any]:
    """Do what is left of a step that `killed_when_written` tells of; returns as `write_version`."""
    with folder.lock():
        made = finish_version(folder)
        _close(folder)
    return made


def evaluated(
    config: Config,
    backbone: Ref,
    stage: Stage,
    before: Stage | None,
    tests: Sequence[Tested],
    context: Context,
) -> Stage:
    """The stage with every method measured on the kept test images; as it is where there are none.

    Args:
        config: of the version.
        backbone: its own.
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
        config, backbone, stage, before, kept, [later] if later else [], context
    )


def judged(folder: LearnerFolder, config: Config, version: Draft, context: Context) -> Version:
    """A version, compared with the champion, with the decision of the gate and, by the plan if
    there is one, of the protocol.

    Args:
        folder: of the learner.
        config: of the version.
        version: measured.
        context: places.
    """
    champion = authorised = against = None
    if folder.exists:
        pointer, tests = folder.pointer(), version["tests"]
        if number := pointer["champion"]:
            champion = _measured_on(tests, folder, number, context)
            against = compare_with(version, champion, context)
        if pointer["plans"]:
            planned = pointer["plans"][-1]["authorised"]
            same = champion if champion and champion.number == planned else None
            authorised = same or _measured_on(tests, folder, planned, context)
    comparison = against.comparison if against else None
    gate = decide(config, version, recall_of(folder, version), champion, comparison)
    judgement, gate = judge_version(
        str(folder.path),
        config,
        version,
        gate,
        champion.number if champion else 0,
        against,
        authorised,
        context,
    )
    return {
        **version,
        "comparison": comparison,
        "gate": gate,
        "judgement": judgement,
        "waits": gate["passed"] and by_hand(folder, config),
    }


def write_version(
    folder: LearnerFolder, config: Config, version: Version, context: Context
) -> dict[str, Any]:
    """Carry out the retention, write the version and report on it; the learner is at it then.

    Args:
        folder: of the learner.
        config: of the version.
        version: judged.
        context: places.

    Returns:
        `learner`, its name, the `version` made, whether it is `champion` or `waits` for a person
        to make it that, and its `outcome` by the plan.
    """
    final = retained(version, config.retention, context)
    folder.commit(dict(final), champion=version["gate"]["passed"] and not version["waits"])
    return finish_version(folder)


def finish_version(folder: LearnerFolder) -> dict[str, Any]:
    """What is left to do for the current version once it is written; as often as one likes.

    Returns:
        As `write_version`.
    """
    number, version = folder.pointer()["current"], read_version(folder)
    if removed := enforce(folder, config_of(version).retention):
        get_run_logger().info("%d images removed: retention's limits", removed)
        withdraw(folder)
    write_change_report(folder, number)
    waiting = waits(folder.pointer(), number, version)
    _tell(folder, number, version, waiting)
    return {
        "learner": folder.name,
        "version": number,
        "champion": version["gate"]["passed"] and not waiting,
        "waits": waiting,
        "outcome": version["judgement"]["outcome"],
    }


def _measured_on(
    tests: Sequence[Tested], folder: LearnerFolder, number: int, context: Context
) -> Other:
    """Another version measured on test images: as it was, where that serves, or again."""
    version = read_version(folder, number)
    if answers_known(version, tests):
        return Other(number, version)
    own = {test["batch"]: test for test in version["tests"]}
    usable = [
        own.get(test["batch"], test)
        for test in tests
        if test["batch"] in own or test["kept"]["images"] is not None
    ]
    stage: Stage = {
        **version["stage"],
        "methods": {DEPLOYED: {**version["stage"]["methods"][DEPLOYED], "evaluated": None}},
    }
    here = context.named("champion")
    stage = evaluated(config_of(version), version["backbone"], stage, None, usable, here)
    return Other(number, {**version, "stage": stage, "tests": usable})


def _marker(folder: LearnerFolder) -> Path:
    """Says which step is under way."""
    return folder.work / "step.json"


def _close(folder: LearnerFolder) -> None:
    """End a step. Its images are gone before its version is shown, which may fail."""
    _clear(folder, _marker(folder))
    show_version(folder)
    folder.tidy()


def _clear(folder: LearnerFolder, keep: Path | None = None) -> None:
    """Remove what a step leaves: decoded images, objects of no version, cached results."""
    journal = folder.work / "results.txt"
    if journal.is_file():
        for key in journal.read_text(encoding="utf-8").split():
            (RESULTS / key).unlink(missing_ok=True)
    folder.tidy(keep)


def _tell(folder: LearnerFolder, number: int, version: Version, waiting: bool) -> None:
    logger, recall = get_run_logger(), recall_of(folder, version)
    told = "cannot be measured" if recall is None else f"mean class recall {100 * recall:.1f}%"
    logger.info("%s is at version %d: %s", folder.name, number, told)
    for check in version["gate"]["checks"]:
        if not check["passed"]:
            logger.warning("not champion: %s", check["detail"])
    if waiting:
        logger.info(WAITS, folder.name, number)
    for note in version["notes"]:
        logger.warning(note)
