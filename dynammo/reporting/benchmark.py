"""What a grid has come to: one HTML page, figures, and the same numbers as CSV, JSON and Markdown.

Reads what each cell has published (results.json, predictions/<method>.csv). Means and deviations
are over seeds; a column is compared with the reference on the seeds that both have.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from dynammo.checkpoint import to_json, write_atomically
from dynammo.evaluation.significance import FEW, Paired, Spread, compare_paired, spread
from dynammo.methods import METHODS
from dynammo.reporting import benchmark_figures as figures
from dynammo.reporting.benchmark_figures import SetResults
from dynammo.reporting.figures import data_uri, to_png
from dynammo.reporting.report import NOTHING, millions, percent, significant, template, to_csv

COMPARED = {  # what is tested against the reference -> how it is called
    "last_mean_class_recall": "recall, last",
    "average_mean_class_recall": "recall, average",
    "last_accuracy": "accuracy, last",
    "average_accuracy": "accuracy, average",
}


class Measure(NamedTuple):
    """A column of the table: heading, how a value is written, and what is better."""

    heading: str
    write: Any
    better: str | None


MEASURES = {
    "average_mean_class_recall": Measure("recall, average, %", percent, "more"),
    "last_mean_class_recall": Measure("recall, last, %", percent, "more"),
    "average_accuracy": Measure("accuracy, average, %", percent, "more"),
    "last_accuracy": Measure("accuracy, last, %", percent, "more"),
    "forgetting_accuracy": Measure("forgetting, points", percent, "less"),
    "average_negative_flips": Measure("negative flips, %", percent, "less"),
    "last_ece": Measure("ECE, last, points", percent, "less"),
    "average_open_set_auroc": Measure("open-set AUROC, %", percent, "more"),
    "average_open_set_fpr95": Measure("open-set FPR95, %", percent, "less"),
    "gmacs": Measure("GMACs an image", significant, "less"),
    "parameters": Measure("million weights", millions, None),
}


@dataclass
class Benchmark:
    """The finished cells of a grid. Add them in the order in which they are to be shown."""

    name: str
    reference: str
    seeds: Sequence[int]
    cells: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)
    predictions: dict[tuple[str, str, int], Path] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    def add(
        self, data: str, column: str, seed: int, document: dict[str, Any], predictions: Path
    ) -> None:
        """Take in a cell.

        Args:
            data: name of the data set.
            column: name of the method in this grid.
            seed: of the cell.
            document: its results, as in results.json, of one method.
            predictions: its table of test images, as in predictions/<method>.csv.
        """
        (method,) = document["variants"]  # of another program, which is no method: the column
        self.cells[data, column, seed] = document
        self.predictions[data, column, seed] = predictions
        self.columns[column] = method

    def sets(self) -> Iterator[SetResults]:
        """The data sets that have a finished cell."""
        looks = figures.looks(self.columns)
        for data in dict.fromkeys(data for data, _, _ in self.cells):
            columns: dict[str, dict[int, Any]] = {}
            for column in self.columns:
                runs = {
                    seed: _variant(self.cells[data, column, seed])
                    for seed in self.seeds
                    if (data, column, seed) in self.cells
                }
                if runs:
                    columns[column] = runs
            reference = self.reference if self.reference in columns else next(iter(columns))
            yield SetResults(data, columns, looks, reference)

    def rows(self) -> list[dict[str, Any]]:
        """One row a data set and column: a `Spread` a measure, a `Paired` a compared metric."""
        return [
            {
                "data": results.name,
                "column": column,
                "method": self.columns[column],
                "seeds": list(results.columns[column]),
                "measures": {key: spread(_values(results, column, key)) for key in MEASURES},
                "compared": {
                    key: _compare(results, column, key)
                    for key in COMPARED
                    if column != results.reference
                },
                "reference": results.reference,
                "seconds": spread(
                    [
                        self.cells[results.name, column, seed].get("seconds")
                        for seed in results.columns[column]
                    ]
                ).mean,
            }
            for results in self.sets()
            for column in results.columns
        ]

    def metrics(self) -> dict[str, float | None]:
        """The means as flat names: `skin8/merged/last_mean_class_recall`."""
        return {
            f"{row['data']}/{row['column']}/{key}": value.mean
            for row in self.rows()
            for key, value in row["measures"].items()
        }


def write_report(benchmark: Benchmark, directory: str | Path) -> Path:
    """Write the report and everything in it that another program may want.

    Files: `report.html` (self-contained), `figures/*.png`, `table.md`, `table.csv` (a row a data
    set and method), `cells.csv` (a row a cell), `per_class.csv` (a row a cell and class) and
    `benchmark.json`. Each is written whole or not at all.

    Args:
        benchmark: with at least one cell.
        directory: made if missing.

    Returns:
        The path of `report.html`.
    """
    directory = Path(directory)
    rows = benchmark.rows()
    pictures = {name: to_png(figure) for name, figure in _figures(benchmark)}
    for name, content in pictures.items():
        write_atomically(directory / "figures" / f"{name}.png", content)
    for name, table in {
        "table.csv": _table(rows),
        "cells.csv": _cells(benchmark),
        "per_class.csv": _per_class(benchmark),
    }.items():
        write_atomically(directory / name, to_csv(table))
    write_atomically(directory / "table.md", markdown_tables(benchmark).encode())
    write_atomically(directory / "benchmark.json", to_json(_document(benchmark, rows)))
    page = directory / "report.html"
    write_atomically(page, _html(benchmark, rows, pictures).encode())
    return page


def markdown_tables(benchmark: Benchmark) -> str:
    """A Markdown table a data set: mean ± standard deviation over the seeds."""
    rows = benchmark.rows()
    parts = []
    for results in benchmark.sets():
        headings = ["", "seeds", *(measure.heading for measure in MEASURES.values())]
        lines = [headings, ["---", *["---:"] * (len(headings) - 1)]]
        for row in rows:
            if row["data"] == results.name:
                values = [shown(row["measures"][key], key) for key in MEASURES]
                lines.append([row["column"], str(len(row["seeds"])), *values])
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        parts.append(f"## {results.name}\n\n{table}")
    return "\n".join(parts)


def shown(value: Spread, key: str) -> str:
    """47.9 ± 1.5; the deviation is left out where there is none, or none to be seen."""
    write = MEASURES[key].write
    text = str(write(value.mean))
    varies = value.deviation is not None and key not in ("gmacs", "parameters")
    return f"{text} ± {write(value.deviation)}" if varies else text


def p_value(value: float | None) -> str:
    """0.0312 -> "0.031"."""
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def difference(pair: Paired) -> str:
    """+1.2 ± 0.4 points."""
    if pair.difference is None:
        return NOTHING
    text = f"{100 * pair.difference:+.1f}"
    return text if pair.deviation is None else f"{text} ± {100 * pair.deviation:.1f}"


def _variant(document: Mapping[str, Any]) -> dict[str, Any]:
    (variant,) = document["variants"].values()
    return dict(variant)


def _values(results: SetResults, column: str, key: str) -> list[float | None]:
    """A measure of each seed."""
    if key == "last_ece":
        return [row[-1] for row in results.stages(column, "ece")]
    metric = key.removeprefix("average_")
    if metric in ("open_set_auroc", "open_set_fpr95"):
        return [spread(row).mean for row in results.stages(column, metric)]
    return results.summary(column, key)


def _compare(results: SetResults, column: str, key: str) -> Paired:
    ours, theirs = (
        dict(zip(results.columns[name], results.summary(name, key), strict=True))
        for name in (column, results.reference)
    )
    return compare_paired(ours, theirs)


def _figures(benchmark: Benchmark) -> Iterator[tuple[str, Figure]]:
    for results in benchmark.sets():
        made = {
            "cost": figures.accuracy_against_cost(results),
            "recall": figures.curves(results, "mean_class_recall"),
            "accuracy": figures.curves(results, "accuracy"),
            "differences": figures.differences(results),
            "forgetting": figures.forgetting(results),
            "matrices": figures.accuracy_matrices(results),
            "classes": figures.class_recall(results),
            "calibration": figures.calibration(results),
            "reliability": figures.reliability(results, _confidences(benchmark, results)),
            "open_set_auroc": figures.open_set(results, "open_set_auroc"),
            "open_set_fpr95": figures.open_set(results, "open_set_fpr95"),
        }
        yield from ((f"{results.name}_{n}", figure) for n, figure in made.items() if figure)


def _confidences(benchmark: Benchmark, results: SetResults) -> dict[str, tuple[Any, Any]]:
    """Column -> confidence and whether right, of all test images of all seeds, from its CSV."""
    found = {}
    for column, runs in results.columns.items():
        confidence: list[float] = []
        right: list[bool] = []
        for seed in runs:
            with benchmark.predictions[results.name, column, seed].open(encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    confidence.append(float(row["confidence"]))
                    right.append(row["actual"] == row["predicted"])
        found[column] = (np.array(confidence), np.array(right))
    return found


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Any]]:
    tests = [f"{key}_{part}" for key in COMPARED for part in Paired._fields]
    measures = [f"{key}_{part}" for key in MEASURES for part in ("mean", "deviation")]
    yield ["data", "column", "method", "seeds", *measures, "reference", *tests]
    for row in rows:
        values = [part for value in row["measures"].values() for part in value[:2]]
        pairs = [row["compared"].get(key) or [None] * len(Paired._fields) for key in COMPARED]
        compared = [part for pair in pairs for part in pair]
        seeds = " ".join(map(str, row["seeds"]))
        yield [
            row["data"],
            row["column"],
            row["method"],
            seeds,
            *values,
            row["reference"],
            *compared,
        ]


def _cells(benchmark: Benchmark) -> Iterator[Sequence[Any]]:
    yield ["data", "column", "method", "seed", *MEASURES, "seconds"]
    for results in benchmark.sets():
        for column, runs in results.columns.items():
            measures = [_values(results, column, key) for key in MEASURES]
            for seed, *values in zip(runs, *measures, strict=True):
                seconds = benchmark.cells[results.name, column, seed].get("seconds")
                yield [results.name, column, benchmark.columns[column], seed, *values, seconds]


def _per_class(benchmark: Benchmark) -> Iterator[Sequence[Any]]:
    keys = ["recall", "precision", "auroc", "support"]
    yield ["data", "column", "seed", "class", *keys]
    for results in benchmark.sets():
        for column, runs in results.columns.items():
            for seed, run in runs.items():
                for name, values in run["stages"][-1]["per_class"].items():
                    yield [results.name, column, seed, name, *(values[key] for key in keys)]


def _document(benchmark: Benchmark, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "name": benchmark.name,
        "seeds": list(benchmark.seeds),
        "reference": benchmark.reference,
        "missing": dict(benchmark.missing),
        "rows": [
            {
                **row,
                "measures": {key: value._asdict() for key, value in row["measures"].items()},
                "compared": {key: pair._asdict() for key, pair in row["compared"].items()},
            }
            for row in rows
        ],
    }


def _best(rows: Sequence[Mapping[str, Any]]) -> set[tuple[str, str, str]]:
    """(data, column, measure) of the best mean of each measure on each data set."""
    best = set()
    for data in {row["data"] for row in rows}:
        for key, measure in MEASURES.items():
            means = {
                row["column"]: row["measures"][key].mean
                for row in rows
                if row["data"] == data and row["measures"][key].mean is not None
            }
            if measure.better and len(means) > 1:
                top = (max if measure.better == "more" else min)(means.values())
                best |= {(data, column, key) for column, mean in means.items() if mean == top}
    return best


def _html(
    benchmark: Benchmark, rows: Sequence[Mapping[str, Any]], pictures: Mapping[str, bytes]
) -> str:
    sets = list(benchmark.sets())
    cell = next(iter(benchmark.cells.values()))
    page = template("benchmark.html.j2", p_value=p_value, difference=difference)
    return page.render(
        benchmark=benchmark,
        sets=sets,
        rows=rows,
        measures=MEASURES,
        compared=COMPARED,
        shown=shown,
        best=_best(rows),
        few=FEW,
        classes={results.name: figures.class_table(results) for results in sets},
        meanings={
            column: METHODS[method].about.meaning if method in METHODS else "another program"
            for column, method in benchmark.columns.items()
        },
        about={
            results.name: next(
                document
                for (data, _, _), document in benchmark.cells.items()
                if data == results.name
            )
            for results in sets
        },
        versions=cell["created_by"],
        pictures={name: data_uri(content) for name, content in pictures.items()},
    )
