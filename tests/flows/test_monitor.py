"""`dynammo monitor` on a learner: silent on pictures like those it knows, loud on others."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from flows.learn import learn
from tests.flows.project import OVERRIDES, TASKS

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_what_is_not_like_the_test_images_is_an_alarm(
    here: Path, arrive: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = {"tracking.register_model": True}
    learn("shapes", str(arrive("batch1", TASKS[0])), None, {**OVERRIDES, **registered})
    random = np.random.default_rng(0)
    (here / "new").mkdir()
    for number in range(30):
        noise = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(here / "new" / f"{number}.png")
    (here / "new" / "bad.png").write_bytes(b"no picture")
    with (here / "new" / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["file", "class"], ["bad.png", ""]])
        writer.writerows([f"{number}.png", "elsewhere"] for number in range(30))
    asked = ["monitor", "shapes", "new", "-o", "report.json"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 3, result.output
    report = json.loads(Path("report.json").read_text())
    assert (report["images"], report["unreadable"], report["version"]) == (30, 1, 1)
    assert report["unknown_classes"] == {"elsewhere": 30}
    assert "features" in report["alarms"]

    # MLflow has it under the version, and among the metrics of its model.
    client = mlflow.MlflowClient()
    version = client.get_model_version("dynammo-shapes", "1")
    assert version.tags["monitor"] == f"{report['at']}: alarm: {', '.join(report['alarms'])}"
    (experiment,) = client.search_experiments(filter_string="name = 'dynammo-shapes'")
    (run,) = client.search_runs([experiment.experiment_id], "tags.alarm != ''")
    assert run.info.status == "FINISHED" and "features" in run.data.tags["alarm"]
    assert run.data.metrics["monitor/images"] == 30
    assert run.data.metrics["monitor/p/features"] <= 0.01
    stored = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/monitor.json")
    assert stored == report
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert "monitor/alarms" in {own.key for own in model.metrics}
    told = CliRunner().invoke(app, ["monitor", "shapes", "batch1"])
    assert told.exit_code == 1 and "are known to the learner" in told.output
    monkeypatch.delenv("DYNAMMO_EVIDENTLY_PYTHON", raising=False)
    told = CliRunner().invoke(app, [*asked, "--evidently", "page.html"])
    assert told.exit_code == 1 and "DYNAMMO_EVIDENTLY_PYTHON must name" in told.output
