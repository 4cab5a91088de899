"""The flow of `dynammo forget` and `dynammo merge`: a learner's next version without new images."""

from __future__ import annotations

from typing import Any

import torch
from prefect import flow
from prefect.runtime import flow_run

import tasks.purge
from dynammo.config import Config, load_config
from dynammo.config.reading import layered
from dynammo.data.marks import mark
from dynammo.learner.folder import LearnerError, LearnerFolder, now
from flows.versions import measured_tests, now_known, show_version, taken_up, write_version
from tasks.forget_batches import forget_batches
from tasks.judge_plan import with_step
from tasks.publish_version import withdraw
from tasks.retain import carry_features
from tasks.support.kept import select_tests
from tasks.support.logs import shorten_expected_errors
from tasks.support.stage import known_classes
from tasks.support.version import (
    Forgotten,
    Tested,
    Version,
    config_of,
    context_in,
    find_learner,
    ledger_of,
)

shorten_expected_errors()


def _run_name() -> str:
    return f"{flow_run.parameters.get('learner')}: {flow_run.flow_name}"


@flow(name="dynammo-forget", flow_run_name=_run_name)
def forget(
    learner: str, batches: list[int] | None = None, classes: list[str] | None = None
) -> dict[str, Any]:
    """Take batches or classes out of a learner: the next version is as if it had never learnt them,
    as far as the mathematics allow (docs/learner.md).

    Args:
        learner: its name.
        batches: their numbers, as `dynammo history` shows them.
        classes: their names.

    Returns:
        `learner`, the `version` made, whether it is `champion`, its `outcome` by the plan, and
        `remarks`: what cannot be taken out.
    """
    return _revise(find_learner(learner), batches or [], classes or [], None, None)


@flow(name="dynammo-merge", flow_run_name=_run_name)
def merge(
    learner: str, batches: list[int] | None = None, rule: str | None = None
) -> dict[str, Any]:
    """Merge a learner's adapters again: some of them, or by another rule. No class is forgotten.

    Args:
        learner: its name.
        batches: numbers of those whose adapters are merged; default: all.
        rule: of merging (docs/merge-rules.md); default: the learner's.
    """
    return _revise(find_learner(learner), [], [], batches, rule)


@flow(name="dynammo-purge", flow_run_name=_run_name)
def purge(
    learner: str, batches: list[int] | None = None, group: str | None = None
) -> dict[str, Any]:
    """Remove images that a learner holds, from all its versions and from MLflow.

    What was learnt from them stays: adapters, statistics and heads are of many images together.

    Args:
        learner: its name.
        batches: only those of these batches.
        group: only those of this group (a patient), and their keyed hashes.

    Returns:
        `learner` and how many images were `removed`.
    """
    folder = find_learner(learner)
    folder.pointer()  # there is one
    with taken_up(folder, {"purge": batches, "group": group and mark(folder.key, group).hex()}):
        if group is not None:
            removed = tasks.purge.forget_group(folder, group)
        else:
            removed = tasks.purge.purge(folder, batches)
        if removed:
            withdraw(folder)
    show_version(folder)
    return {"learner": learner, "removed": removed}


@flow(name="dynammo-promote", flow_run_name=_run_name)
def promote(
    learner: str, version: int, reason: str | None = None, back: bool = False
) -> dict[str, Any]:
    """Make a version champion, here and in MLflow.

    Args:
        learner: its name.
        version: its number.
        reason: why, where the gate was not passed.
        back: whether learning goes on from it, too.

    Raises:
        LearnerError: the version did not pass the gate, and there is no reason.
    """
    folder = find_learner(learner)
    gate = folder.version(version)["gate"]
    if not (back or gate["passed"] or (reason and reason.strip())):
        failed = "; ".join(check["detail"] for check in gate["checks"] if not check["passed"])
        raise LearnerError(
            f"version {version} did not pass the gate and needs a reason to be champion: {failed}"
        )
    with folder.lock():
        if back:
            folder.rollback(version)
        else:
            folder.promote(version, reason)
    show_version(folder)
    return {"learner": learner, "champion": version}


def _revise(
    folder: LearnerFolder,
    batches: list[int],
    classes: list[str],
    merged: list[int] | None,
    rule: str | None,
) -> dict[str, Any]:
    before: Any = folder.current()
    old: Version = before
    again = merged is not None or rule is not None
    config = _configured(old, rule)
    learnt = {own["number"]: [*own["new"], *own["again"]] for own in old["batches"]}
    _check(folder.name, learnt, old, batches, classes)
    step = {
        "forget": batches,
        "classes": classes,
        "merge": merged,
        "config": config.model_dump(mode="json"),
    }
    with taken_up(folder, step):
        here = context_in(folder, config, f"after version {folder.pointer()['current']}")
        if again and merged is None:
            adapted = old["stage"]["adapted"]
            merged = adapted["numbers"] if adapted else []
        left = forget_batches(
            config,
            old["stage"],
            old["backbone"],
            ledger_of(folder, old),
            learnt,
            batches,
            classes,
            here,
            merged,
        )
        kept = set(known_classes(left.stage))
        tests = _tests_left(folder, old, batches, kept)
        for method, drift in left.drifts.items():
            tests = carry_features(tests, method, drift, here)
        gone = [name for name in known_classes(old["stage"]) if name not in kept]
        code, libraries = now_known()
        version: Version = {
            **old,
            "parent": folder.pointer()["current"],
            "operation": _told(batches, classes, merged if again else None, rule, gone),
            "at": now(),
            "config": config.model_dump(mode="json"),
            "stage": left.stage,
            "batches": [
                {
                    **own,
                    "new": [name for name in own["new"] if name in kept],
                    "again": [name for name in own["again"] if name in kept],
                }
                for own in old["batches"]
                if own["number"] not in batches
            ],
            "forgotten": _forgotten(old, batches, gone),
            "tests": tests,
            "ledger": folder.store.save(
                "ledger", ledger_of(folder, old).without(batches).state(), {}
            ),
            "comparison": None,
            "gate": {"passed": False, "checks": []},
            "code": code,
            "versions": libraries,
            "notes": left.remarks,
            "steps": with_step(folder, old, ["retrain_same_classes" if again else "forget"]),
        }
        version["stage"] = measured_tests(config, version, left.stage, None, tests, here)
        made = write_version(folder, config, version, here)
    show_version(folder)
    return {
        "learner": folder.name,
        "version": made,
        "champion": folder.pointer()["champion"] == made,
        "outcome": folder.version(made)["judgement"]["outcome"],
        "remarks": left.remarks,
    }


def _configured(old: Version, rule: str | None) -> Config:
    config = config_of(old)
    if rule is None:
        return config
    changes = {"merge": {"rule": rule}}
    return load_config(None, layered({**config.model_dump(mode="json"), **changes}))


def _check(
    name: str, learnt: dict[int, list[str]], old: Version, batches: list[int], classes: list[str]
) -> None:
    if absent := [number for number in batches if number not in learnt]:
        known = ", ".join(map(str, learnt))
        raise LearnerError(f"{name} has no batch {absent[0]}; there are: {known}")
    known_now = known_classes(old["stage"])
    if unknown := [own for own in classes if own not in known_now]:
        raise LearnerError(
            f"{name} does not know class {unknown[0]!r}; it knows: {', '.join(known_now)}"
        )


def _tests_left(
    folder: LearnerFolder, old: Version, batches: list[int], kept: set[str]
) -> list[Tested]:
    """Test images of what is still known."""
    left: list[Tested] = []
    for test in old["tests"]:
        names = [name for name in test["kept"]["names"] if name in kept]
        if test["batch"] in batches or not names:
            continue
        everything = torch.ones(len(folder.store.load(test["kept"]["labels"])["labels"])).bool()
        rest = select_tests(test["kept"], everything, names, folder.store)
        left.append({**test, "kept": rest})
    return left


def _forgotten(old: Version, batches: list[int], gone: list[str]) -> Forgotten:
    hashes = [own["hash"] for own in old["batches"] if own["number"] in batches]
    return {
        "batches": [*old["forgotten"]["batches"], *hashes],
        "classes": [*old["forgotten"]["classes"], *gone],
    }


def _told(
    batches: list[int],
    classes: list[str],
    merged: list[int] | None,
    rule: str | None,
    gone: list[str],
) -> str:
    if merged is not None:
        return f"merge batches {', '.join(map(str, merged))}" + (f" by {rule}" if rule else "")
    what = [f"batch {', '.join(map(str, batches))}"] if batches else []
    what += [f"class {', '.join(classes)}"] if classes else []
    lost = f" (classes gone: {', '.join(gone)})" if gone and not classes else ""
    return f"forget {'; '.join(what)}{lost}"
