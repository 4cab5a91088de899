"""The flow that learns what arrives: a folder or an S3 prefix is an inbox of batches.

Deployed as `dynammo/watch`, on a schedule. Whatever goes wrong is told (`flows.support.notify`).
"""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger

from flows.learn import learn
from flows.support.notify import notify, tell
from tasks.inbox import look, open_inbox
from tasks.support.version import WAITS, find_learner


@flow(name="dynammo", flow_run_name="{learner}: watch {inbox}", on_failure=[notify])
def watch(
    learner: str,
    inbox: str,
    quiet_minutes: float = 10,
    overrides: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Learn every batch that has arrived, in the order of their names; one that fails stops it.

    Args:
        learner: its name; made by the first batch.
        inbox: a folder of batches, or `s3://bucket/prefix`. A batch that is learnt gets a file
            `.learnt`, and is nobody's business here any more: delete it.
        quiet_minutes: a batch that changed since is still being copied.
        overrides: settings, for the first batch.

    Returns:
        What `learn` gave for each.
    """
    logger, made = get_run_logger(), []
    for batch in look(inbox, quiet_minutes):
        logger.info("learning %s", batch)
        own = open_inbox(inbox)
        with own.here(batch) as folder:
            new = not find_learner(learner).exists
            done = learn(learner, str(folder), None, overrides if new else None)
        own.done(batch)
        made.append(done)
        if not done["champion"]:
            tell(
                f"{learner}: version {done['version']} ({batch}) is not champion",
                WAITS % (learner, done["version"])
                if done["waits"]
                else f"The gate did not pass; `dynammo history {learner}` and the log say why.",
            )
    return made
