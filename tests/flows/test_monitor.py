"""`dynammo monitor` on a learner: silent on pictures like those it knows, loud on others."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from flows.learn import learn
from tests.flows.project import OVERRIDES, TASKS

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_what_is_not_like_the_test_images_is_an_alarm(
    here: Path, arrive: Callable[..., Path]
) -> None:
    learn("shapes", str(arrive("batch1", TASKS[0])), None, OVERRIDES)
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
    told = CliRunner().invoke(app, ["monitor", "shapes", "batch1"])
    assert told.exit_code == 1 and "are known to the learner" in told.output
