"""Keep what a grid has come to: the report's folder, and a run in MLflow."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact

from dynammo.errors import DataError
from dynammo.evaluation.grid import REPORT, Cell, Grid
from dynammo.evaluation.scores import measure_scores, read_scores, write_predictions
from dynammo.reporting.benchmark import Benchmark, markdown_tables, write_report
from tasks.publish import replaced_folder
from tasks.support.cells import read
from tasks.support.mlflow import runs as mlflow_runs


def open_grid(grid: Grid, keys: Sequence[str]) -> str:
    """Find or make the MLflow run of a grid: one for the same cells."""
    key = hashlib.sha256("\n".join(["grid", grid.name, *sorted(keys)]).encode()).hexdigest()
    description = (
        f"Grid `{grid.name}`: {', '.join(grid.data)} x {', '.join(grid.methods)} x seeds "
        f"{', '.join(map(str, grid.seeds))}. The report is among the artifacts; the cells are the "
        "other runs of this experiment, a parent each."
    )
    settings = grid.model_dump(mode="json", include={"base", "data", "methods", "seeds"})
    params = {**settings, "reference": grid.compared_with}
    return mlflow_runs.open_run(grid.experiment, key, f"grid {grid.name}", description, params)


@task(name="report on the grid")
def report(
    grid: Grid, cells: Sequence[Cell], keys: Mapping[str, str], failed: Mapping[str, str], run: str
) -> tuple[Path, dict[str, str]]:
    """Write the report on all finished cells, and record it in the grid's MLflow run.

    Args:
        grid: what was asked for.
        cells: its cells.
        keys: cell name -> key.
        failed: cell name -> reason.
        run: the grid's in MLflow.

    Returns:
        The page, and what of other programs could not be read: cell name -> reason.

    Raises:
        DataError: no cell is finished.
    """
    benchmark = Benchmark(grid.name, grid.compared_with, grid.seeds)
    for cell in cells:
        if document := read(cell.config.output_dir, keys[cell.name]):
            predictions = cell.config.output_dir / "predictions" / f"{grid.method(cell.column)}.csv"
            benchmark.add(cell.data, cell.column, cell.seed, document, predictions)
    if not benchmark.cells:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise DataError(f"no cell is finished, so there is nothing to report. {reasons}")
    benchmark.missing = {
        cell.name: failed.get(cell.name, "not run")
        for cell in cells
        if (cell.data, cell.column, cell.seed) not in benchmark.cells
    }
    unread = _add_others(grid, benchmark)
    with replaced_folder(grid.folder / REPORT) as folder:
        write_report(benchmark, folder)
    folder = grid.folder / REPORT
    mlflow_runs.log_files(run, _files(folder), "report", replace=True)
    mlflow_runs.log_files(run, sorted((folder / "figures").glob("*.png")), "figures", replace=True)
    close_grid(run, benchmark.metrics(), bool(failed or unread))
    create_markdown_artifact(
        markdown_tables(benchmark), key=f"grid-{grid.name.lower().replace('_', '-')}"
    )
    return folder / "report.html", unread


def _add_others(grid: Grid, benchmark: Benchmark) -> dict[str, str]:
    """Measure other programs' scores, on the test images and tasks of our cells of the same seed.

    Returns:
        Cell name -> why its table cannot be read.
    """
    missing, unread = {}, {}
    ours = {(data, seed): (data, column, seed) for data, column, seed in benchmark.cells}
    for data, column, seed, table in grid.others():
        name = f"{data}/{column}/{seed}"
        if table is None or (data, seed) not in ours:
            missing[name] = "no table" if table is None else "no cell of ours to compare with"
            continue
        cell = ours[data, seed]
        with benchmark.predictions[cell].open(encoding="utf-8", newline="") as stream:
            tests = {row["file"]: row["actual"] for row in csv.DictReader(stream)}
        tasks = [part["classes"] for part in benchmark.cells[cell]["tasks"]]
        try:
            stages = read_scores(table, tests, tasks)
        except DataError as error:
            unread[name] = str(error)
            continue
        predictions = grid.folder / data / column / str(seed) / "predictions" / f"{column}.csv"
        write_predictions(predictions, stages[-1], tests, [name for task in tasks for name in task])
        cost = {"gmacs": None, "parameters": None}
        measured = measure_scores(stages, tasks)
        measured["summary"] |= cost
        benchmark.add(data, column, seed, {"variants": {column: measured}}, predictions)
    benchmark.missing = {**benchmark.missing, **missing, **unread}
    return unread


def close_grid(run: str, metrics: Mapping[str, float | None], failed: bool) -> None:
    """Give the grid's run its metrics and its final status."""
    mlflow_runs.finish_run(run, metrics, failed)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())
