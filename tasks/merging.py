"""Merge all adapters trained so far into one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynammo.checkpoint import Ref
from dynammo.config import Config
from dynammo.merging import MERGE_RULES
from tasks.support.caching import step
from tasks.support.workspace import CHECKPOINTS, Context, provenance


@step("merge adapters", task_run_name="merge adapters {context[label]}")
def merge_adapters(
    settings: dict[str, Any], adapters: list[Ref], inputs: Mapping[str, Any], context: Context
) -> Ref:
    """Apply the configured merge rule to the adapters of tasks 1..t, read one at a time.

    Args:
        settings: section merge.
        adapters: one a task.
        inputs: what the rule needs beside them (`tasks.merge_inputs`); checkpoints are loaded for
            it, those of a list one at a time.
        context: labels.
    """
    config = Config.model_validate(settings)
    rule = MERGE_RULES[config.merge.rule]
    loaded = {name: _loaded(value) for name, value in inputs.items()}
    merged = rule(map(CHECKPOINTS.load, adapters), **loaded, **config.merge.options)
    meta = provenance(settings, adapters=[adapter["sha256"] for adapter in adapters], **inputs)
    return CHECKPOINTS.save("merged", merged, meta)


def _loaded(value: Any) -> Any:
    """A checkpoint's weights, a list of checkpoints one after another, or the value itself."""
    if isinstance(value, list) and isinstance(value[0], dict):
        return map(CHECKPOINTS.load, value)
    is_checkpoint = isinstance(value, dict)
    return CHECKPOINTS.load(value) if is_checkpoint else value
