"""The flow `dynammo-benchmark`: the cells of a grid, data sets x methods x seeds, and their report.

Each cell is a run of the flow `dynammo` with one method and a results folder of its own. Cells that
are done are not run again; one that fails does not stop the others. Run it with `dynammo benchmark
GRID.yaml`, or as the deployment `dynammo-benchmark/grid`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from dynammo.errors import DynammoError
from dynammo.evaluation.grid import load_grid
from flows.support.cell import run_cell
from tasks.report_grid import close_grid, open_grid, report
from tasks.run_cells import run_cells
from tasks.support.cells import check_grid, finished
from tasks.support.logs import shorten_expected_errors

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
    scores: dict[str, str] | None = None,
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
        scores: column -> folder of another program's scores, in addition to the grid's.
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
        scores=scores,
        runner=runner,
        workers=workers,
    )
    cells, known = check_grid(asked)
    todo = [cell for cell in cells if not finished(cell.config.output_dir, known[cell.name].key)]
    logger.info("%d cells, %d of them done", len(cells), len(cells) - len(todo))
    # Before the cells: so MLflow's database and experiment are there when they start side by side.
    run_id = open_grid(asked, [known[cell.name].key for cell in cells])
    failed: dict[str, str] = {}
    try:
        for cell, outcome in run_cells(asked, todo, known, run_cell):
            if outcome["error"]:
                failed[cell.name] = outcome["error"]
                logger.error("%s failed: %s", cell.name, outcome["error"])
            else:
                logger.info("%s took %.0f seconds", cell.name, outcome["seconds"])
        keys = {name: it.key for name, it in known.items()}
        page, unread = report(asked, cells, keys, failed, run_id)
        failed |= unread
    except BaseException:
        close_grid(run_id, {}, failed=True)
        raise
    if failed:
        lines = [f"  - {name}: {reason}" for name, reason in failed.items()]
        head = f"{len(failed)} of {len(cells)} cells failed; the same command tries them again:"
        raise CellsFailed("\n".join([head, *lines]))
    return {"report": str(page), "run": len(todo), "cells": len(cells)}
