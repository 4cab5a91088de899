"""The flow of `dynammo forget`: batches or classes are taken out of a learner."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.support.revision import check_known, draft_revised, gone, taken_for, tests_left
from flows.support.versions import (
    evaluated,
    finish_killed,
    judged,
    killed_when_written,
    taken_up,
    write_version,
)
from tasks.forget_batches import forget_batches
from tasks.sign_learner import check_signed
from tasks.support.logs import shorten_expected_errors
from tasks.support.version import config_of, context_in, find_learner, ledger_of, read_version

shorten_expected_errors()


@flow(name="dynammo-forget", flow_run_name="{learner}: dynammo-forget")
def forget(
    learner: str,
    batches: list[int] | None = None,
    classes: list[str] | None = None,
    public_key: str | None = None,
) -> dict[str, Any]:
    """Take batches or classes out of a learner: the next version is as if it had never learnt them,
    as far as the mathematics allow (docs/how-to/learner.md).

    Args:
        learner: its name.
        batches: their numbers, as `dynammo history` shows them.
        classes: their names.
        public_key: as of `flows.learn.learn`.

    Returns:
        As `flows.learn.learn`, and `remarks`: what cannot be taken out.
    """
    folder, batches, classes = find_learner(learner), batches or [], classes or []
    old = read_version(folder)
    config = config_of(old)
    step = {"forget": batches, "classes": classes, "config": config.model_dump(mode="json")}
    if killed_when_written(folder) == {**step, "parent": old["parent"]}:
        return {**finish_killed(folder), "remarks": old["notes"]}
    check_signed(folder, public_key)
    check_known(folder, old, batches, classes)
    with taken_up(folder, step):
        here = context_in(folder, config, f"after version {folder.pointer()['current']}")
        left = forget_batches(config, old, ledger_of(folder, old), batches, classes, here)
        tests = tests_left(folder, old, left, batches, here)
        stage = evaluated(config, old["backbone"], left.stage, None, tests, here)
        now = taken_for(folder, old, config, left, here.named("forgotten"))
        told = _told(batches, classes, gone(old, left))
        draft = draft_revised(folder, old, config, left, stage, tests, batches, told, "forget", now)
        made = write_version(folder, config, judged(folder, config, draft, here), here)
    return {**made, "remarks": left.remarks}


def _told(batches: list[int], classes: list[str], lost: list[str]) -> str:
    what = [f"batch {', '.join(map(str, batches))}"] if batches else []
    what += [f"class {', '.join(classes)}"] if classes else []
    also = f" (classes gone: {', '.join(lost)})" if lost and not classes else ""
    return f"forget {'; '.join(what)}{also}"
