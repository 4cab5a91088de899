"""The flow of `dynammo learn`: a learner and a batch of images become its next version.

The batch's images are read once; what is kept of them is what `retention` says. Run it with
`dynammo learn NAME BATCH`, or as the deployment `dynammo/learn`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from dynammo.config import Config
from dynammo.data.checks import check_image_set
from dynammo.errors import ConfigError
from dynammo.learner.batch import load_batch
from dynammo.learner.folder import LearnerFolder, now
from dynammo.learner.ledger import Ledger
from dynammo.learner.settings import DEPLOYED, check_again, first_settings, next_settings
from dynammo.memory.herding import quota
from flows.learning import at, learn_batch, start
from flows.notify import notify
from flows.versions import (
    measured_tests,
    now_known,
    show_version,
    taken_up,
    write_version,
)
from tasks.check_repeats import check_repeats
from tasks.judge_plan import arrived_images, check_stated, with_step
from tasks.keep_images import keep_images
from tasks.publish_version import fetch_learner, is_registered, learner_name
from tasks.retain import carry_features
from tasks.support.logs import shorten_expected_errors
from tasks.support.stage import Stage, known_classes, measured
from tasks.support.version import (
    Tested,
    Version,
    config_of,
    context_in,
    find_learner,
    ledger_of,
)
from tasks.version_data import prepare_images, write_batch

shorten_expected_errors()


def _run_name() -> str:
    return f"{flow_run.parameters.get('learner')}: learn"


@flow(name="dynammo", flow_run_name=_run_name, on_failure=[notify])
def learn(
    learner: str,
    batch: str,
    params: str | None = None,
    overrides: dict[str, Any] | None = None,
    modifications: list[str] | None = None,
) -> dict[str, Any]:
    """Learn a batch: new classes, further images of known ones, or both.

    Args:
        learner: its name, or the registered model that holds it: `models:/dynammo-skin@champion`.
            A name that is not known yet makes a learner.
        batch: folder of images, or a CSV (`dynammo.learner.batch`).
        params: YAML file of the configuration; for a new learner.
        overrides: settings that win over the file, or, of a known learner, over those it has.
        modifications: what the batch does not tell by itself: new_site, new_scanner, recalibrate.

    Returns:
        `learner`, the `version` made, whether it is `champion`, and its `outcome` by the plan.
    """
    logger = get_run_logger()
    stated = check_stated(modifications or [])
    name = learner
    if is_registered(learner):
        name = learner_name(learner)
        fetch_learner(learner, find_learner(name))
    folder = find_learner(name)
    config, before = _configured(folder, params, overrides or {})
    ledger = ledger_of(folder, before) if before else Ledger.empty()
    # A learner that has seen nothing is not made before its first batch is known to be sound.
    key = folder.key if before else "00" * 32
    image_set, left_out = load_batch(Path(batch), config.data.test_share, ledger, key)
    if left_out:
        logger.warning("%d images are left out: they have been learnt before", left_out)
    check_image_set(image_set, config.data.repeats)
    known = known_classes(before["stage"]) if before else []
    quota(config.memory, len(set(image_set.classes) | set(known)))  # there is a place for each
    check_again(config, sorted(set(image_set.classes) & set(known)))
    number = max((own["number"] for own in before["batches"]), default=0) + 1 if before else 1
    step = {
        "learn": image_set.content_hash,
        "config": config.model_dump(mode="json"),
        "number": number,
        "modifications": stated,
    }
    with taken_up(folder, step):
        # Known classes first, as they stand in the head; new ones by name.
        classes = sorted(image_set.classes, key=lambda own: (own not in known, own))
        arrived = write_batch(image_set, number, classes, folder.work)
        images = prepare_images(
            arrived["manifest"], config.image.size, config.data.repeats, str(folder.work / "images")
        )
        here = at(context_in(folder, config), arrived, images, f"batch {number}")
        if before:
            check_repeats(before["tests"], before["stage"], config.data.repeats, here)
        backbone = before["backbone"] if before else start(config, arrived, here)
        was = before["stage"] if before else None
        tests = list(before["tests"]) if before else []
        answered = bool(was and before and _answered(was, tests))
        stage = learn_batch(config, arrived, backbone, was, here)
        if drift := _drift(stage, number):
            tests = carry_features(tests, DEPLOYED, drift, here)
        if arrived["test_images"]:
            tests.append({"batch": number, "kept": keep_images("test", arrived["test"], here)})
        code, libraries = now_known()
        again = [own for own in classes if own in known]
        new = [own for own in classes if own not in known]
        version: Version = {
            "parent": folder.pointer()["current"] if folder.exists else 0,
            "operation": _told(new, again, arrived["train_images"]),
            "at": now(),
            "config": config.model_dump(mode="json"),
            "backbone": backbone,
            "stage": stage,
            "batches": [
                *(before["batches"] if before else []),
                {
                    "number": number,
                    "hash": arrived["hash"],
                    "at": now(),
                    "new": new,
                    "again": again,
                    "train_images": arrived["train_images"],
                    "test_images": arrived["test_images"],
                },
            ],
            "forgotten": _still_forgotten(before, arrived["hash"], new),
            "tests": tests,
            "ledger": folder.store.save(
                "ledger",
                ledger.plus(Ledger.of(image_set.samples, number, folder.key)).state(),
                {},
            ),
            "comparison": None,
            "gate": {"passed": False, "checks": []},
            "code": code,
            "versions": libraries,
            "notes": [],
            "steps": with_step(
                folder,
                before,
                [
                    *(["add_named_class"] if new else []),
                    *(["retrain_same_classes"] if again else []),
                    *stated,
                ],
                arrived_images(image_set, new),
            ),
        }
        version["stage"] = measured_tests(
            config, version, stage, was if answered else None, tests, here
        )
        made = write_version(folder, config, version, here)
    show_version(folder)
    return {
        "learner": name,
        "version": made,
        "champion": folder.pointer()["champion"] == made,
        "outcome": folder.version(made)["judgement"]["outcome"],
    }


def _configured(
    folder: LearnerFolder, params: str | None, overrides: dict[str, Any]
) -> tuple[Config, Version | None]:
    """The configuration, and the version that is gone on from."""
    if not folder.exists:
        return first_settings(folder.name, params, overrides), None
    current: Any = folder.current()
    before: Version = current
    if params is not None:
        raise ConfigError([f"{folder.name} has its settings; a params file is for a new learner"])
    return next_settings(config_of(before), overrides), before


def _drift(stage: Stage, number: int) -> Any:
    """What this batch did to the deployed network's features; none where they did not change."""
    parts = stage["methods"][DEPLOYED]["parts"]
    return parts[-1]["drift"] if parts and parts[-1]["batch"] == number else None


def _answered(stage: Stage, tests: list[Tested]) -> bool:
    """Whether the stage's answers to the kept test images are known."""
    return bool(tests) and len(measured(stage)) == len(stage["methods"])


def _still_forgotten(before: Version | None, batch: str, new: list[str]) -> Any:
    """What came back is not forgotten any more."""
    if before is None:
        return {"batches": [], "classes": []}
    return {
        "batches": [own for own in before["forgotten"]["batches"] if own != batch],
        "classes": [own for own in before["forgotten"]["classes"] if own not in new],
    }


def _told(new: list[str], again: list[str], images: int) -> str:
    said = [f"learn {', '.join(new)}"] if new else []
    said += [f"more of {', '.join(again)}"] if again else []
    return f"{'; '.join(said)} ({images} images)"
