"""Merge all adapters trained so far into one."""

from __future__ import annotations

from typing import Any

from dynammo.checkpoint import Ref
from dynammo.config import Config
from dynammo.merging import MERGE_RULES
from tasks.caching import step
from tasks.workspace import CHECKPOINTS, Context, provenance


@step("merge adapters", task_run_name="merge adapters {context[label]}")
def merge_adapters(settings: dict[str, Any], adapters: list[Ref], context: Context) -> Ref:
    """Apply the configured merge rule to the adapters of tasks 1..t, read one at a time.

    Args:
        settings: section merge.
        adapters: one a task.
        context: labels.
    """
    config = Config.model_validate(settings)
    rule = MERGE_RULES[config.merge.rule]
    merged = rule(CHECKPOINTS.load(adapter) for adapter in adapters)
    meta = provenance(settings, adapters=[adapter["sha256"] for adapter in adapters])
    return CHECKPOINTS.save("merged", merged, meta)
