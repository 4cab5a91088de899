"""What `dynammo benchmark` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dynammo.errors import ConfigError
from dynammo.evaluation.grid import Cell, estimate_gmacs, load_grid, plan
from flows.cli import server
from tasks.support.cells import check_grid, finished, inspect


def run_grid(grid: str, asked: dict[str, Any]) -> Panel:
    """Run a grid in this process, then say where to look.

    Args:
        grid: its file.
        asked: arguments of the flow `benchmark`.
    """
    from flows.benchmark import benchmark

    check_grid(load_grid(grid, **asked))  # what is wrong is said before anything is started
    server.ready()
    came = benchmark(grid, **asked)
    report = Path(came["report"])
    lines = [
        f"report       {report}",
        f"tables       {report.parent}/table.md, table.csv, cells.csv, benchmark.json",
        f"cells        {came['cells']}, {came['run']} of them run now",
    ]
    return Panel(Text("\n".join(lines)), title="where to look")


def show_plan(grid: str, asked: dict[str, Any]) -> Group:
    """The cells of a grid: which are done, and what the others may cost. Nothing is run.

    Raises:
        ConfigError: what would keep cells from running; all problems at once.
    """
    chosen = load_grid(grid, **asked)
    cells, problems = plan(chosen)
    known, others = inspect(cells, weights=False)
    problems += others
    table = Table(box=SIMPLE_HEAD, show_edge=False, title=f"{chosen.name}: {len(cells)} cells")
    for heading in ("data", "method", "seeds done", "seeds to do", "TMACs", "hours"):
        table.add_column(heading, justify="right" if heading in ("TMACs", "hours") else "left")
    total = 0.0

    def seeds(own: list[Cell], fits: Callable[[Cell], bool]) -> str:
        return " ".join(str(cell.seed) for cell in own if fits(cell)) or "-"

    def is_done(cell: Cell) -> bool:
        return cell.name in known and finished(cell.config.output_dir, known[cell.name].key)

    for data in chosen.data:
        for column in chosen.methods:
            own = [cell for cell in cells if (cell.data, cell.column) == (data, column)]
            done = {cell.name for cell in own if is_done(cell)}
            todo = [cell for cell in own if cell.name not in done]
            cost = [
                estimate_gmacs(cell.config, known[cell.name].images, known[cell.name].classes)
                for cell in todo
                if cell.name in known
            ]
            total += sum(cost)
            unknown = len(cost) < len(todo)
            shown = ["?", "?"] if unknown else _cost(sum(cost), chosen.gmacs_per_second)
            table.add_row(
                data,
                column,
                seeds(own, lambda cell, done=done: cell.name in done),  # type: ignore[misc]
                seeds(own, lambda cell, done=done: cell.name not in done),  # type: ignore[misc]
                *shown,
            )
    tera, hours = _cost(total, chosen.gmacs_per_second)
    note = Text(
        f"In all roughly {tera} TMACs (10^12 multiply-adds), {hours} hours at "
        f"{chosen.gmacs_per_second:g} GMACs a second (gmacs_per_second of the grid), one after "
        "another. Cells that share adapters take them from the cache."
    )
    if problems:
        from rich.console import Console

        Console(stderr=True).print(table)
        raise ConfigError(problems)
    return Group(table, note)


def _cost(gmacs: float, rate: float) -> list[str]:
    return [f"{gmacs / 1000:,.1f}", f"{gmacs / rate / 3600:,.2f}"]
