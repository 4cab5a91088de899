"""The report on a grid: what it says, and that it holds the numbers of its cells."""

from __future__ import annotations

import csv
import json
import re
import warnings
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from dynammo.evaluation.metrics import Predictions, evaluate_stage, summarise
from dynammo.methods import METHODS
from dynammo.reporting import benchmark_figures as figures
from dynammo.reporting.benchmark import Benchmark, write_report

NAMES = [f"class {letter}" for letter in "abcdefgh"]


def cell(
    folder: Path, method: str, seed: int, skill: float, tasks: int = 3, untested: int | None = None
) -> tuple[dict[str, Any], Path]:
    """A results document of two classes a task, and its predictions, right with chance `skill`."""
    order = np.random.default_rng(seed).permutation(2 * tasks)
    generator = np.random.default_rng([seed, round(1000 * skill)])
    names = [[NAMES[order[2 * t]], NAMES[order[2 * t + 1]]] for t in range(tasks)]
    targets = np.repeat(np.arange(2 * tasks), 8)
    targets = targets[targets != untested] if untested is not None else targets
    stages: list[dict[str, Any]] = []
    before = None
    for stage in range(1, tasks + 1):
        seen = 2 * stage
        right = generator.random(len(targets)) < skill - 0.04 * stage
        other = generator.integers(0, seen, len(targets))
        now = Predictions(
            targets,
            np.where(right & (targets < seen), targets, other),
            generator.random((len(targets), seen)),
            generator.uniform(0.4, 1, len(targets)),
            generator.random(len(targets)) + (targets < seen) * skill,
        )
        cost = {"gmacs": 0.1 * (stage if method == "unmerged" else 1), "parameters": 3_000_000}
        stages.append({**evaluate_stage(now, names, stage, before), **cost})
        before = now
    file = folder / f"{method}-{skill}-{seed}.csv"
    with file.open("w", encoding="utf-8") as text:
        writer = csv.writer(text)
        writer.writerow(["file", "actual", "predicted", "confidence"])
        for number, (target, predicted) in enumerate(zip(targets, now.predicted, strict=True)):
            writer.writerow([number, target, predicted, f"{now.confidence[number]:.4f}"])
    summary = {**summarise(stages), "gmacs": stages[-1]["gmacs"], "parameters": 3_000_000}
    document = {
        "variants": {method: {"summary": summary, "stages": stages}},
        "data": {"train_images": 90, "test_images": len(targets)},
        "tasks": [{"number": t + 1, "classes": own} for t, own in enumerate(names)],
        "config": {"image": {"size": 48}, "backbone": {"name": "test_resnet"}},
        "created_by": {"dynammo": "0.0"},
        "seconds": 12.5,
    }
    return document, file


SKILL = {"merged": 0.7, "unmerged": 0.8, "frozen": 0.5}


def grid(folder: Path, seeds: list[int], tasks: int = 3, **more: Any) -> Benchmark:
    made = Benchmark("tiny", "unmerged", seeds)
    for column, skill in SKILL.items():
        for seed in seeds:
            made.add("shapes", column, seed, *cell(folder, column, seed, skill, tasks, **more))
    return made


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Benchmark, Path]:
    folder = tmp_path_factory.mktemp("grid")
    made = grid(folder, [1, 50, 42])
    made.missing = {"shapes/lost/1": "DataError: <nothing> there"}
    write_report(made, folder / "report")
    return made, folder / "report"


def last_recall(made: Benchmark, column: str) -> list[float]:
    return [
        made.cells["shapes", column, seed]["variants"][column]["summary"]["last_mean_class_recall"]
        for seed in made.seeds
    ]


def test_the_page_holds_the_numbers(written: tuple[Benchmark, Path]) -> None:
    made, folder = written
    page = (folder / "report.html").read_text()
    for column in SKILL:
        values = [100 * value for value in last_recall(made, column)]
        assert f"{mean(values):.1f} ± {stdev(values):.1f}" in page
    gaps = [
        100 * (a - b)
        for a, b in zip(last_recall(made, "merged"), last_recall(made, "unmerged"), strict=True)
    ]
    assert f"{mean(gaps):+.1f} ± {stdev(gaps):.1f}" in page
    assert "3 seeds are too few for a test to mean much" in page
    assert "shapes/lost/1: DataError: &lt;nothing&gt; there" in page
    # Opens anywhere: nothing is fetched.
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)


def test_the_tables_hold_the_numbers(written: tuple[Benchmark, Path]) -> None:
    made, folder = written
    cells = list(csv.DictReader((folder / "cells.csv").open()))
    assert len(cells) == 9
    table = {row["column"]: row for row in csv.DictReader((folder / "table.csv").open())}
    document = json.loads((folder / "benchmark.json").read_text())
    for row in document["rows"]:
        column = row["column"]
        values = last_recall(made, column)
        own = [float(c["last_mean_class_recall"]) for c in cells if c["column"] == column]
        assert own == pytest.approx(values)
        spread = row["measures"]["last_mean_class_recall"]
        assert spread == pytest.approx({"mean": mean(values), "deviation": stdev(values), "n": 3})
        assert float(table[column]["last_mean_class_recall_mean"]) == pytest.approx(mean(values))
        assert ("last_mean_class_recall" in row["compared"]) == (column != "unmerged")
    assert f"| merged | 3 | {100 * spread_of(document, 'average_accuracy'):.1f} ± " in re.sub(
        r"(\| merged \| 3 \|) [\d.]+ ± [\d.]+ \| [\d.]+ ± [\d.]+ \|",
        r"\1",
        (folder / "table.md").read_text(),
    )
    classes = list(csv.DictReader((folder / "per_class.csv").open()))
    assert {row["class"] for row in classes} == set(NAMES[:6])


def spread_of(document: dict[str, Any], key: str) -> float:
    (row,) = [row for row in document["rows"] if row["column"] == "merged"]
    return float(row["measures"][key]["mean"])


def test_every_figure_is_there_and_legible(written: tuple[Benchmark, Path]) -> None:
    _, folder = written
    kinds = "cost recall accuracy differences forgetting matrices classes calibration reliability"
    names = {f"shapes_{kind}" for kind in [*kinds.split(), "open_set_auroc", "open_set_fpr95"]}
    files = {file.stem: file for file in (folder / "figures").iterdir()}
    assert files.keys() == names
    for file in files.values():
        with Image.open(file) as picture:
            assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 3


def test_one_seed_one_task_and_an_untested_class(tmp_path: Path) -> None:
    """No deviation, no forgetting, nothing unknown, a class without images: no warning, no NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = grid(tmp_path, [1], tasks=1, untested=1)
        page = write_report(made, tmp_path / "report").read_text()
    assert "nan" not in page.lower().replace("data:image", "").split("base64")[0]
    assert "one seed: nothing to test" in page
    rows = {row["column"]: row for row in made.rows()}
    assert rows["merged"]["measures"]["forgetting_accuracy"].mean is None
    assert rows["merged"]["measures"]["average_open_set_auroc"].mean is None
    (results,) = made.sets()
    untested = [recall for _, recall, support in figures.class_table(results) if support == 0]
    assert untested == [dict.fromkeys(SKILL)]
    json.loads((tmp_path / "report" / "benchmark.json").read_text())


def test_many_columns_stay_apart(tmp_path: Path) -> None:
    """Fifteen methods: every look differs, and no label lies over another."""
    made = Benchmark("wide", "unmerged", [1, 2])
    for place, method in enumerate(METHODS):
        for seed in made.seeds:
            document = cell(tmp_path, method, seed, 0.5 + 0.003 * place)
            made.add("shapes", method, seed, *document)
    assert len(made.columns) > figures.MOST_STYLED
    (results,) = made.sets()
    assert len(set(results.looks.values())) == len(made.columns)
    drawn = [
        figures.curves(results, "accuracy"),
        figures.accuracy_against_cost(results),
        figures.open_set(results, "open_set_auroc"),
    ]
    for figure in drawn:
        assert figure is not None
        figure.draw_without_rendering()
        # An annotation's own extent takes in its line.
        boxes = [Text.get_window_extent(t) for t in figure.axes[0].texts]
        boxes = sorted((b for b in boxes if b.x0 > figure.axes[0].bbox.x1), key=lambda b: b.y0)
        assert len(boxes) == len(made.columns)
        for one, other in pairwise(boxes):
            assert not one.overlaps(other)
        assert max(box.x1 for box in boxes) <= figure.bbox.x1


def test_few_methods_look_as_they_do_elsewhere() -> None:
    few = figures.looks({"merged": "merged", "unmerged": "unmerged"})
    assert few["merged"].colour == METHODS["merged"].about.style.colour
    twice = figures.looks({"merged": "merged", "merged-paper": "merged"})
    assert twice["merged"].colour != twice["merged-paper"].colour
