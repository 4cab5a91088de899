"""One cell of a grid: a run of the flow `dynammo`, as a task that any process can run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.incremental import incremental
from tasks.run_cells import Outcome, one_line
from tasks.support.cells import record


@task(name="cell", task_run_name="{name}", cache_policy=NO_CACHE)
def run_cell(
    name: str, settings: dict[str, Any], folder: str, key: str, threads: int | None
) -> Outcome:
    """Run one cell, and note beside its results what they follow from.

    Args:
        name: of the cell.
        settings: all of its configuration.
        folder: of its results.
        key: see `tasks.support.cells.cell_key`.
        threads: of torch in this process; none leaves them as they are.

    Returns:
        `seconds`, and `error`: one line, or none.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    begin = time.monotonic()
    try:
        incremental.with_options(flow_run_name=name.replace("{", "{{"))(None, settings)
        record(Path(folder), key, time.monotonic() - begin)
    except Exception as error:  # reported with the others; its run has the traceback
        return {"error": one_line(error), "seconds": time.monotonic() - begin}
    return {"error": None, "seconds": time.monotonic() - begin}
