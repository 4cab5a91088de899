"""The flow of `dynammo merge`: a learner's adapters are merged again."""

from __future__ import annotations

from typing import Any

from prefect import flow

from dynammo.config import Config, load_config
from dynammo.config.reading import layered
from flows.support.revision import draft_revised, tests_left
from flows.support.versions import evaluated, judged, taken_up, write_version
from tasks.forget_batches import forget_batches
from tasks.sign_learner import check_signed
from tasks.support.logs import shorten_expected_errors
from tasks.support.version import config_of, context_in, find_learner, ledger_of, read_version

shorten_expected_errors()


@flow(name="dynammo-merge", flow_run_name="{learner}: dynammo-merge")
def merge(
    learner: str,
    batches: list[int] | None = None,
    rule: str | None = None,
    public_key: str | None = None,
) -> dict[str, Any]:
    """Merge a learner's adapters again: some of them, or by another rule. No class is forgotten.

    Args:
        learner: its name.
        batches: numbers of those whose adapters are merged; default: all.
        rule: of merging (docs/reference/merging.md); default: the learner's.
        public_key: as of `flows.learn.learn`.

    Returns:
        As `flows.forget.forget` does.
    """
    folder = find_learner(learner)
    check_signed(folder, public_key)
    old = read_version(folder)
    config = _by_rule(config_of(old), rule)
    step = {"merge": batches, "config": config.model_dump(mode="json")}
    if batches is None:
        batches = old["stage"]["adapted"]["numbers"] if old["stage"]["adapted"] else []
    with taken_up(folder, step):
        here = context_in(folder, config, f"after version {folder.pointer()['current']}")
        left = forget_batches(config, old, ledger_of(folder, old), [], [], here, batches)
        tests = tests_left(folder, old, left, [], here)
        stage = evaluated(config, old["backbone"], left.stage, None, tests, here)
        told = f"merge batches {', '.join(map(str, batches))}" + (f" by {rule}" if rule else "")
        kind = "retrain_same_classes"
        draft = draft_revised(folder, old, config, left, stage, tests, [], told, kind, {})
        made = write_version(folder, config, judged(folder, config, draft, here), here)
    return {**made, "remarks": left.remarks}


def _by_rule(config: Config, rule: str | None) -> Config:
    if rule is None:
        return config
    return load_config(None, layered({**config.model_dump(mode="json"), "merge": {"rule": rule}}))
