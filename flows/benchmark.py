"""The flow `dynammo-benchmark`: the cells of a grid, data sets x methods x seeds, and their report.

Each cell is a run of the flow `dynammo` with one method and a results folder of its own. Cells that
are done are not run again; one that fails does not stop the others. Run it with `dynammo benchmark
GRID.yaml`, or as the deployment `dynammo-benchmark/grid`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner
from tqdm import tqdm

from dynammo.errors import ConfigError, DynammoError
from dynammo.evaluation.grid import Cell, Grid, load_grid, plan
from flows.incremental import incremental
from tasks.report_grid import close_grid, open_grid, report
from tasks.support.cells import Known, decode, finished, inspect, record
from tasks.support.logs import shorten_expected_errors
from tasks.support.progress import progress_bar

shorten_expected_errors()


class CellsFailed(DynammoError):
    """Some cells of a grid have failed; each with its reason, a line a cell."""


def _run_name() -> str:
    return Path(flow_run.parameters["grid"]).stem


@flow(name="dynammo-benchmark", flow_run_name=_run_name)
def benchmark(
    grid: str,
    overrides: dict[str, Any] | None = None,
    data: list[str] | None = None,
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    paths: dict[str, str] | None = None,
    runner: str | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Run the cells of a grid that are not done, and report on all of them.

    Args:
        grid: YAML file of the grid, relative to the project.
        overrides: settings for all cells: {"train.epochs": 3}.
        data: of its data sets these only; default: all.
        methods: of its methods these only.
        seeds: instead of its own.
        paths: data set -> folder of its images.
        runner: sequential, process, dask or ray; default: what the grid says.
        workers: cells at a time.

    Returns:
        `report`, the page; `run`, how many cells were run now, and `cells`, how many there are.

    Raises:
        ConfigError: the grid cannot be run; all problems at once, and nothing has been run.
        CellsFailed: cells failed; the others are finished and reported.
    """
    logger = get_run_logger()
    asked = load_grid(
        grid,
        data=data,
        methods=methods,
        seeds=seeds,
        paths=paths,
        overrides=overrides,
        runner=runner,
        workers=workers,
    )
    cells, known = check(asked)
    todo = [cell for cell in cells if not finished(cell.config.output_dir, known[cell.name].key)]
    logger.info("%d cells, %d of them done", len(cells), len(cells) - len(todo))
    # Before the cells: so MLflow's database and experiment are there when they start side by side.
    run_id = open_grid(asked, [known[cell.name].key for cell in cells])
    failed: dict[str, str] = {}
    try:
        if asked.runner != "sequential":
            with progress_bar("decode images", "image") as progress:
                decode(todo, known, progress)
        for cell, outcome in run_cells(asked, todo, known):
            if outcome["error"]:
                failed[cell.name] = outcome["error"]
                logger.error("%s failed: %s", cell.name, outcome["error"])
            else:
                logger.info("%s took %.0f seconds", cell.name, outcome["seconds"])
        page = report(asked, cells, {name: it.key for name, it in known.items()}, failed, run_id)
    except BaseException:
        close_grid(run_id, {}, failed=True)
        raise
    if failed:
        lines = [f"  - {name}: {reason}" for name, reason in failed.items()]
        head = f"{len(failed)} of {len(cells)} cells failed; the same command tries them again:"
        raise CellsFailed("\n".join([head, *lines]))
    return {"report": str(page), "run": len(todo), "cells": len(cells)}


def check(grid: Grid, weights: bool = True) -> tuple[list[Cell], dict[str, Known]]:
    """The cells of a grid, and what is known of each before it runs.

    Raises:
        ConfigError: what would keep cells from running; all problems at once.
    """
    cells, problems = plan(grid)
    known, others = inspect(cells, weights)
    problems += [*others, *_missing_runner(grid)]
    if problems:
        raise ConfigError(problems)
    return cells, known


def run_cells(
    grid: Grid, cells: list[Cell], known: dict[str, Known]
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Run cells, one after another or side by side, with a bar; each with what became of it."""
    # Else every process takes all cores, and they get into each other's way.
    threads = max(1, (os.cpu_count() or 1) // grid.workers) if grid.runner != "sequential" else None

    def arguments(cell: Cell) -> tuple[str, dict[str, Any], str, str, int | None]:
        settings = cell.config.model_dump(mode="json")
        folder = str(cell.config.output_dir.absolute())
        return cell.name, settings, folder, known[cell.name].key, threads

    with tqdm(total=len(cells), desc="cells", unit="cell", disable=None, dynamic_ncols=True) as bar:
        if grid.runner == "sequential":
            for number, cell in enumerate(cells, start=1):
                bar.set_postfix_str(cell.name)
                outcome = run_cell(*arguments(cell))
                bar.update()
                _tell(number, len(cells), cell.name, outcome)
                yield cell, outcome
            return
        by_name = {cell.name: cell for cell in cells}
        with _same_server():
            # A flow of its own, for the task runner of a flow is chosen before it starts.
            @flow(name="cells", task_runner=_task_runner(grid))
            def side_by_side() -> dict[str, dict[str, Any]]:
                futures = {run_cell.submit(*arguments(cell)): cell.name for cell in cells}
                outcomes = {}
                for number, future in enumerate(as_completed(list(futures)), start=1):
                    name = futures[future]
                    outcomes[name] = _outcome(future)
                    bar.update()
                    _tell(number, len(cells), name, outcomes[name])
                return outcomes

            for name, outcome in side_by_side().items():
                yield by_name[name], outcome


def _tell(number: int, count: int, name: str, outcome: dict[str, Any]) -> None:
    """A line for each cell, above the bar, or where there is no terminal for a bar."""
    result = "failed" if outcome["error"] else f"{outcome['seconds']:.0f} s"
    tqdm.write(f"{number}/{count} {name}: {result}", file=sys.stderr)


def _outcome(future: PrefectFuture[Any]) -> dict[str, Any]:
    """What a cell returned; where its process died, that it did."""
    try:
        result = future.result(raise_on_failure=False)
    except Exception as error:  # such as a killed worker's: the other cells are to be heard
        result = error
    if isinstance(result, dict):
        return result
    return {"error": f"its process ended: {_line(result)}", "seconds": 0.0}


@task(name="cell", task_run_name="{name}", cache_policy=NO_CACHE)
def run_cell(
    name: str, settings: dict[str, Any], folder: str, key: str, threads: int | None
) -> dict[str, Any]:
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
        return {"error": _line(error), "seconds": time.monotonic() - begin}
    return {"error": None, "seconds": time.monotonic() - begin}


def _line(error: object) -> str:
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


def _missing_runner(grid: Grid) -> list[str]:
    package = {"dask": "prefect_dask", "ray": "prefect_ray"}.get(grid.runner)
    if package is None or find_spec(package):
        return []
    return [f"runner {grid.runner} needs {package}: .venv/bin/uv pip install -e '.[distributed]'"]
