"""`dynammo export-model`: what it prints, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dynammo.deploy import export
from dynammo.deploy.predictor import Predictor
from flows.cli import app
from tests.models import random_model


@pytest.fixture
def results(tmp_path: Path) -> Path:
    random_model(tmp_path / "results" / "model", ["a", "b"], seed=0)
    return tmp_path / "results"


def test_a_results_folder_is_exported_and_the_differences_are_told(
    results: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["export-model", str(results), str(out), "-f", "safetensors"])
    assert done.exit_code == 0, done.output
    assert "model.safetensors" in done.stdout
    assert "16 images" in done.stdout.replace("\n", " ")
    assert Predictor(out).classes == ["a", "b"]
    assert not (out / "model.onnx").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--format", "pkl"], "unknown format 'pkl'; known: safetensors, pt2, onnx"),
        (["--check", "nowhere"], "nowhere: no such file or folder"),
        (
            ["--int8"],
            "a smaller model needs labelled images: give --labelled, or a learner's folder",
        ),
        (["--int8", "--labelled", "nowhere"], "nowhere: no such file or folder"),
        (["--prune", "1"], "--prune: expected a share between 0 and 1"),
        (["--prune", "0.5", "--monai-bundle"], "a smaller model needs labelled images"),
        (["--int8", "--max-drop", "nan"], "--max-drop: expected a number from 0 to 100"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(
    change: list[str], message: str, results: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["export-model", str(results), str(out), *change])
    assert done.exit_code == 1
    assert message in done.stderr
    assert not out.exists()


def test_a_model_that_answers_otherwise_is_not_exported(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LOGIT_TOLERANCE", -1.0)
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["export-model", str(results), str(out), "-f", "safetensors"])
    assert done.exit_code == 1
    assert "does not predict what the model predicts" in done.stderr
    assert not out.exists()
