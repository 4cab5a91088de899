"""The flow of `dynammo purge`: the images that a learner holds are removed."""

from __future__ import annotations

from typing import Any

from prefect import flow

from dynammo.data.marks import mark
from flows.support.versions import taken_up
from tasks.publish_version import withdraw
from tasks.purge import forget_group, purge_batches
from tasks.support.logs import shorten_expected_errors
from tasks.support.version import find_learner

shorten_expected_errors()


@flow(name="dynammo-purge", flow_run_name="{learner}: dynammo-purge")
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
            removed = forget_group(folder, group)
        else:
            removed = purge_batches(folder, batches)
        if removed:
            withdraw(folder)
    return {"learner": learner, "removed": removed}
