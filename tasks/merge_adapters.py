"""Merge all adapters trained so far into one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from dynammo.checkpoint import Ref
from dynammo.config import MergeConfig
from dynammo.merging import MERGE_RULES
from dynammo.merging.inputs import running_form
from tasks.support.caching import step
from tasks.support.workspace import Context, provenance


@step("merge adapters", task_run_name="merge adapters {context.label}")
def merge_adapters(
    merge: MergeConfig,
    adapters: list[Ref],
    before: Ref | None,
    inputs: Mapping[str, Any],
    context: Context,
) -> Ref:
    """Apply the configured merge rule to the adapters of tasks 1..t.

    A rule with a running form goes on from the adapter merged before and reads the newest one
    alone; any other reads all of them, one at a time.

    Args:
        merge: the rule.
        adapters: one a task.
        before: merged from all of them but the last; none if that is not known.
        inputs: what the rule needs beside them (`tasks.merge_inputs`); checkpoints are loaded for
            it, those of a list one at a time.
        context: places.
    """
    store = context.checkpoints
    rule = MERGE_RULES[merge.rule]
    running = running_form(rule)
    if running is not None and before is not None and not merge.options:
        merged = running(store.load(before), store.load(adapters[-1]), len(adapters))
    else:

        def loaded(value: Any) -> Any:
            """A checkpoint's weights, checkpoints one after another, or the value itself."""
            if isinstance(value, list) and isinstance(value[0], dict):
                return map(store.load, value)
            return store.load(cast(Ref, value)) if isinstance(value, dict) else value

        extra = {name: loaded(value) for name, value in inputs.items()}
        merged = rule(map(store.load, adapters), **extra, **merge.options)
    return store.save("merged", merged, provenance(merge, adapters=adapters, **inputs))
