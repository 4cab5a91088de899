"""Run the cells of a grid, one after another or side by side."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from prefect import Task, flow
from prefect.client.orchestration import get_client
from prefect.futures import PrefectFuture, as_completed
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner
from tqdm import tqdm

from dynammo.errors import DynammoError
from dynammo.evaluation.grid import Cell, Grid
from tasks.support.cells import Known, decode
from tasks.support.progress import progress_bar

Outcome = dict[str, Any]
"""What became of a cell: the `seconds` it took, and `error`, a line, or none."""


def run_cells(
    grid: Grid,
    cells: Sequence[Cell],
    known: Mapping[str, Known],
    run: Task[[str, dict[str, Any], str, str, int | None], Outcome],
) -> Iterator[tuple[Cell, Outcome]]:
    """Run cells, one after another or side by side, with a bar; each with what became of it.

    Args:
        grid: says how many at a time, and by what.
        cells: of the grid.
        known: of each cell, what its results follow from.
        run: runs one: its name, settings, folder of results, key, and torch's threads.
    """
    # Else every process takes all cores, and they get into each other's way.
    threads = max(1, (os.cpu_count() or 1) // grid.workers) if grid.runner != "sequential" else None
    if grid.runner != "sequential":  # they would all decode
        with progress_bar("decode images", "image") as progress:
            decode(cells, known, progress)

    def arguments(cell: Cell) -> tuple[str, dict[str, Any], str, str, int | None]:
        settings = cell.config.model_dump(mode="json")
        folder = str(cell.config.output_dir.absolute())
        return cell.name, settings, folder, known[cell.name].key, threads

    with tqdm(total=len(cells), desc="cells", unit="cell", disable=None, dynamic_ncols=True) as bar:
        if grid.runner == "sequential":
            for number, cell in enumerate(cells, start=1):
                bar.set_postfix_str(cell.name)
                outcome = run(*arguments(cell))
                bar.update()
                _tell(number, len(cells), cell.name, outcome)
                yield cell, outcome
            return
        by_name = {cell.name: cell for cell in cells}
        with _same_server():
            # A flow of its own, for the task runner of a flow is chosen before it starts.
            @flow(name="cells", task_runner=_task_runner(grid))
            def side_by_side() -> dict[str, Outcome]:
                futures = {run.submit(*arguments(cell)): cell.name for cell in cells}
                outcomes = {}
                for number, future in enumerate(as_completed(list(futures)), start=1):
                    name = futures[future]
                    outcomes[name] = _outcome(future)
                    bar.update()
                    _tell(number, len(cells), name, outcomes[name])
                return outcomes

            for name, outcome in side_by_side().items():
                yield by_name[name], outcome


def _tell(number: int, count: int, name: str, outcome: Outcome) -> None:
    """A line for each cell, above the bar, or where there is no terminal for a bar."""
    result = "failed" if outcome["error"] else f"{outcome['seconds']:.0f} s"
    tqdm.write(f"{number}/{count} {name}: {result}", file=sys.stderr)


def _outcome(future: PrefectFuture[Any]) -> Outcome:
    """What a cell returned; where its process died, that it did."""
    try:
        result = future.result(raise_on_failure=False)
    except Exception as error:  # such as a killed worker's: the other cells are to be heard
        result = error
    if isinstance(result, dict):
        return result
    return {"error": f"its process ended: {one_line(result)}", "seconds": 0.0}


def one_line(error: object) -> str:
    """An error as one line; of one that is not expected the kind, too."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if not isinstance(error, DynammoError) and isinstance(error, BaseException):
        text = f"{type(error).__name__}: {text}"
    return text[:300]


@contextmanager
def _same_server() -> Iterator[None]:
    """Other processes report to the Prefect server of this one; else each would start its own."""
    with (
        get_client(sync_client=True) as client,
        temporary_settings({PREFECT_API_URL: str(client.api_url)}),
    ):
        yield


def _task_runner(grid: Grid) -> TaskRunner[Any]:
    """One cell at a time in a process: torch's random numbers and threads belong to a process."""
    runner: TaskRunner[Any]
    if grid.runner == "dask":
        from prefect_dask import DaskTaskRunner

        options = {"n_workers": grid.workers, "threads_per_worker": 1, "dashboard_address": None}
        here = {"cluster_kwargs": options}
        runner = DaskTaskRunner(**({"address": grid.address} if grid.address else here))
    elif grid.runner == "ray":
        from prefect_ray import RayTaskRunner

        here = {"init_kwargs": {"num_cpus": grid.workers, "include_dashboard": False}}
        runner = RayTaskRunner(**({"address": grid.address} if grid.address else here))
    else:
        runner = ProcessPoolTaskRunner(max_workers=grid.workers)
    return runner
