"""A grid from beginning to end: cells, a failure, taking up again, and the report."""

from __future__ import annotations

import csv
import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from typer.testing import CliRunner

from dynammo.errors import ConfigError
from dynammo.evaluation.grid import load_grid, plan
from flows.benchmark import CellsFailed, benchmark
from flows.cli import app
from tasks.support.cells import check_grid, finished
from tasks.support.mlflow.runs import tracking_uri
from tests.flows.project import TASKS, Project

ROOT = Path(__file__).parents[2]
SHORT = {"train.epochs": 1, "head.epochs": 2, "scenario.class_order": "seed"}
FEW = SHORT | {"scenario.tasks": TASKS[:2]}

# Given here, for the command sets it for good, which would silence the runs of other tests.
QUIET = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING"}


def write_grid(project: Project, **changes: Any) -> str:
    pictures = yaml.safe_load(project.params.read_text())["data"]["path"]
    grid = {
        "base": str(project.params),
        "data": {"shapes": {"data.path": pictures}},
        "methods": ["merged", "frozen"],
        "overrides": SHORT,
        "seeds": [1, 2],
        **changes,
    }
    file = project.folder / "small.yaml"
    file.write_text(yaml.safe_dump(grid, sort_keys=False))
    return str(file)


class Ran(logging.Handler):
    """Names of the cells that were really run: a flow run each."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.cells: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        name = getattr(record, "flow_run_name", "")
        if name.count("/") == 2:
            self.cells.add(name)


@pytest.fixture
def ran() -> Any:
    """Call it to know which cells have been run since the last call."""
    handler, logger = Ran(), logging.getLogger("prefect.flow_runs")
    logger.addHandler(handler)

    def since() -> set[str]:
        cells, handler.cells = handler.cells, set()
        return cells

    yield since
    logger.removeHandler(handler)


@pytest.mark.timeout(900)
def test_a_grid_with_a_failure_goes_on_and_is_taken_up(
    new: Project,
    prefect_server: None,
    ran: Callable[[], set[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    columns = {
        "merged": {"preset": "best"},
        "broken": {"methods": ["merged"], "preset": "paper", "train.learning_rate": 1e30},
        "frozen": None,
    }
    all_cells = {f"shapes/{column}/{seed}" for column in columns for seed in (1, 2)}
    with new.entered():
        file = write_grid(new, methods=columns, overrides=FEW)
        with pytest.raises(CellsFailed) as failure:
            benchmark(file)
        lines = str(failure.value).splitlines()
        assert lines[0].startswith("2 of 6 cells failed")
        assert [line.split(":")[0] for line in lines[1:]] == [
            "  - shapes/broken/1",
            "  - shapes/broken/2",
        ]
        assert "the loss is nan" in lines[1]
        assert ran() == all_cells
        told = [line for line in capsys.readouterr().err.splitlines() if "/6 shapes/" in line]
        assert [line.split("/")[0] for line in told] == list("123456")
        ends = {line.split()[1].rstrip(":"): line.endswith(" s") for line in told}
        assert ends == {cell: "broken" not in cell for cell in all_cells}
        folder = new.folder / "results" / "small"
        page = (folder / "report" / "report.html").read_text()
        assert "shapes/broken/1: the loss is nan" in page

        # The failed ones are tried again, the others are not.
        with pytest.raises(CellsFailed):
            benchmark(file)
        assert ran() == {"shapes/broken/1", "shapes/broken/2"}

        # Without them everything is done; a damaged result is not taken for one.
        (folder / "shapes" / "frozen" / "2" / "results.json").write_text("{}")
        done = benchmark(file, methods=["merged", "frozen"])
        assert (done["cells"], done["run"]) == (4, 1)
        assert ran() == {"shapes/frozen/2"}

        # Other settings are another experiment; where it is recorded is not.
        def undone(overrides: dict[str, Any]) -> int:
            grid = load_grid(file, methods=["merged", "frozen"], overrides=overrides)
            cells, known = check_grid(grid)
            return sum(not finished(c.config.output_dir, known[c.name].key) for c in cells)

        assert undone({"head.epochs": 1}) == 4
        assert undone({"tracking.register_model": True, "device": "auto"}) == 0
        (folder / "shapes" / "frozen" / "1" / "predictions" / "frozen.csv").unlink()
        assert undone({}) == 1

        # The cells are runs of the flow like others: the report says what they say.
        own = {
            (column, seed): json.loads(
                (folder / "shapes" / column / str(seed) / "metrics.json").read_text()
            )[column]
            for column in ("merged", "frozen")
            for seed in (1, 2)
        }
        rows = {r["column"]: r for r in csv.DictReader((folder / "report" / "table.csv").open())}
        for column in ("merged", "frozen"):
            expected = mean(own[column, seed]["last_accuracy"] for seed in (1, 2))
            assert float(rows[column]["last_accuracy_mean"]) == pytest.approx(expected)

        client = MlflowClient(tracking_uri())
        experiment = client.get_experiment_by_name("dynammo-benchmark-small")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        grids = [run for run in runs if run.data.tags["dynammo.variant"] == "grid"]
        newest = max(grids, key=lambda run: run.info.start_time)
        assert {run.info.status for run in grids} == {"FINISHED", "FAILED"}
        assert "shapes/frozen/last_accuracy" in newest.data.metrics
        listed = client.list_artifacts(newest.info.run_id, "report")
        assert "report/report.html" in {info.path for info in listed}
        assert client.search_registered_models() == []  # a grid fills no registry

        # Another program's scores stand beside them: here merged's own, and a table cut short.
        theirs = new.folder / "theirs" / "shapes"
        theirs.mkdir(parents=True)
        scores = (folder / "shapes" / "merged" / "1" / "scores" / "merged.csv.gz").read_bytes()
        (theirs / "1.csv.gz").write_bytes(scores)
        (theirs / "2.csv").write_bytes(gzip.decompress(scores)[:1000])
        with pytest.raises(CellsFailed, match=r"shapes/theirs/2: .*2\.csv"):
            benchmark(file, methods=["merged", "frozen"], scores={"theirs": str(theirs.parent)})
        cells = {
            (row["column"], row["seed"]): {**row, "column": "", "method": "", "seconds": ""}
            for row in csv.DictReader((folder / "report" / "cells.csv").open())
        }
        free = {"gmacs": "", "parameters": ""}
        assert cells["theirs", "1"] == {**cells["merged", "1"], **free}
        assert ("theirs", "2") not in cells


@pytest.mark.timeout(900)
def test_two_processes_share_server_workspace_and_database(
    new: Project, prefect_server: None
) -> None:
    """Side by side: the same numbers as one after the other."""
    with new.entered():
        file = write_grid(new, output="results/aside", methods=["merged"], overrides=FEW)
        side = benchmark(file, runner="process", workers=2)
        assert (side["cells"], side["run"]) == (2, 2)
        assert benchmark(write_grid(new, methods=["merged"], overrides=FEW))["run"] == 2
        for seed in (1, 2):
            one, other = (
                json.loads(
                    (new.folder / f"results/{name}/shapes/merged/{seed}/metrics.json").read_text()
                )
                for name in ("aside", "small")
            )
            assert one == other


def test_all_problems_come_at_once(new: Project) -> None:
    with new.entered():
        file = write_grid(
            new,
            data={
                "lost": {"data.path": "nowhere"},
                "shapes": {"data.path": "pictures", "scenario.tasks": [["amber", "lime"]]},
            },
            methods={"merged": None, "unmerged": {"adapter.name": "foo"}},
        )
        pictures = yaml.safe_load(new.params.read_text())["data"]["path"]
        arguments = ["benchmark", file, "--path", f"shapes={pictures}", "--runner", "process"]
        for more in ([], ["--dry-run"]):
            result = CliRunner(env=QUIET).invoke(app, [*arguments, *more])
            assert result.exit_code == 1
            text = result.stderr.partition("error: ")[2]
            assert "adapter.name: unknown adapter 'foo'" in text
            assert "nowhere/train: no such folder" in text
            assert "unknown class 'lime'" in text
        assert not (new.folder / "results").exists()


def test_a_dry_run_runs_nothing(new: Project) -> None:
    with new.entered():
        result = CliRunner(env=QUIET).invoke(app, ["benchmark", write_grid(new), "--dry-run"])
        assert result.exit_code == 0, result.output
        assert "small: 4 cells" in result.stdout
        assert "TMACs" in result.stdout
        assert not (new.folder / "results").exists()


GRIDS = sorted((ROOT / "benchmarks" / "grids").glob("*.yaml"))


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_the_grids_of_the_repository_are_valid(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    grid = load_grid(file)
    cells, problems = plan(grid)
    assert problems == []
    assert len(cells) == len(grid.data) * len(grid.methods) * len(grid.seeds)
    assert grid.seeds == [1, 50, 42, 100, 1993]
    if file.stem == "paper":
        assert {cell.config.preset for cell in cells} == {"paper"}
        assert {cell.config.train.epochs for cell in cells} == {200}
        assert {cell.config.image.size for cell in cells} == {224}


def test_a_grid_file_that_makes_no_sense(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(
        "data: {a: {}, report: {}}\nmethods: {merged: , mine: , two: {methods: [merged, frozen]}}\n"
        "seeds: [1, 1]\nreference: other\nworkers: 2\nscores: {merged: there}\n"
    )
    with pytest.raises(ConfigError) as error:
        load_grid(file)
    text = str(error.value)
    for part in (
        "methods.mine: unknown method 'mine'; known: merged",
        "methods.two: a column is one method, got ['merged', 'frozen']",
        "seeds names one twice",
        "reference 'other' is not among merged, mine, two",
        "'report' is the folder of the report",
        "workers: 2 need a runner",
        "scores: merged is a column of methods, too",
    ):
        assert part in text
    with pytest.raises(ConfigError, match="has no data set 'b'"):
        file.write_text("data: {a: {}}\nmethods: [merged]\n")
        load_grid(file, data=["b"])
    with pytest.raises(ConfigError, match="nmae: unknown key"):
        file.write_text("data: {a: {}}\nmethods: [merged]\nnmae: x\n")
        load_grid(file)
