"""The results folder: what may be replaced, and that it is replaced whole or not at all."""

from __future__ import annotations

import json
import math
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dynammo.checkpoint import CheckpointStore
from dynammo.config import TrackingConfig, load_config
from dynammo.deploy import export
from dynammo.deploy.graph import GraphPredictor, load_predictor
from dynammo.deploy.predictor import Predictor
from dynammo.errors import ConfigError, ExportError
from dynammo.evaluation.appearance import distances_of_others, fit
from tasks.publish import (
    PUBLISHED,
    check_output,
    collect,
    put_graph,
    replaced_folder,
    thresholds,
)
from tasks.support.exchange import exchanged
from tasks.support.stage import learnt
from tasks.support.workspace import CHECKPOINTS

ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Results of an earlier run."""
    target = tmp_path / "results" / "shapes"
    (target / "model").mkdir(parents=True)
    for name in ("metrics.json", "results.json", ".gitignore", "model/model.json"):
        (target / name).write_text("old")
    return target


def alarm(share: float, **more: Any) -> TrackingConfig:
    return TrackingConfig(unknown_alarm=share, **more)


def test_thresholds_are_set_on_the_test_images_of_known_classes(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    shares = torch.cat([torch.arange(1, 21) / 100, torch.full((5,), 0.5), torch.full((9,), 0.01)])
    targets = torch.tensor([0] * 20 + [1] * 5 + [2] * 9)  # of 0, 1, and a class that is not known
    answers = {
        "targets": targets,
        "predicted": torch.zeros_like(targets),
        "probabilities": torch.stack([1 - shares, shares], 1).double(),
        "confidence": shares.double(),
        "knownness": shares.double(),
    }
    predictions = store.save("predictions", answers, {})
    merged = learnt() | {"evaluated": {"predictions": predictions}}
    found = thresholds(merged, alarm(0.1), store)
    sets, unknown = found["prediction_sets"], found["unknown"]
    assert sets is not None and sets.miss == 0.1
    # Of class 0 1 - p is 0.01 to 0.20: the 19th of 20, ceil(21 * 0.9). Five images are too few.
    assert sets.thresholds == [pytest.approx(0.19, abs=1e-6), None]
    # Of the 25 known images the 24th strangest, ceil(26 * 0.9): one of the five at a half.
    assert unknown is not None and unknown.alarm == 0.1
    assert unknown.threshold == pytest.approx(math.log(0.5))
    assert thresholds(merged, alarm(0.01), store)["unknown"] is None  # too few to promise that
    assert unknown.appearance is None

    # With the pictures' appearance each limit has half of the alarms: the 24th of 25 distances.
    looks = torch.from_numpy(np.random.default_rng(0).normal(size=(34, 12)))
    predictions = store.save("predictions", {**answers, "appearance": looks}, {})
    merged = learnt() | {"evaluated": {"predictions": predictions}}
    both = thresholds(merged, alarm(0.2), store)["unknown"]
    assert both is not None and both.appearance is not None
    assert both.threshold == unknown.threshold
    measured, labels = looks[:25].numpy(), targets[:25].numpy()
    np.testing.assert_allclose(both.appearance.means, fit(measured, labels).means)
    assert both.appearance.threshold == np.sort(distances_of_others(measured, labels))[23]
    assert thresholds(merged, alarm(0.01), store)["unknown"] is None
    by_class = thresholds(merged, alarm(0.2, unknown_by_class=True), store)["unknown"]
    assert by_class is not None and by_class.threshold >= both.threshold
    assert by_class.model_dump() != both.model_dump()
    assert thresholds(learnt(), alarm(0.1), store) == {"prediction_sets": None, "unknown": None}


def test_results_may_be_replaced(published: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for target in (published, tmp_path / "empty", tmp_path / "missing"):
        check_output(target)


def test_what_dvc_leaves_may_be_replaced(tmp_path: Path) -> None:
    """Before a stage runs again, DVC removes what it gave, and nothing else."""
    (stage,) = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    outs = [*stage["outs"], *(path for metric in stage["metrics"] for path in metric)]
    for name in PUBLISHED - {out.rpartition("/")[2] for out in outs}:
        path = tmp_path / name
        path.touch() if path.suffix or name.startswith(".") else path.mkdir()
    check_output(tmp_path)


def test_anything_else_may_not(published: Path) -> None:
    for name in ("notes.txt", "thesis", "b.py", "a.py"):
        (published / name).write_text("mine")
    with pytest.raises(ConfigError, match=r"shapes would be replaced, but holds a\.py, b\.py, not"):
        check_output(published)


def test_folders_without_results_are_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "thesis" / "figures").mkdir(parents=True)
    with pytest.raises(ConfigError, match="thesis would be replaced, but holds figures"):
        check_output(tmp_path / "thesis")


def test_a_file_is_no_folder_for_results(published: Path) -> None:
    with pytest.raises(ConfigError, match=r"metrics\.json is a file"):
        check_output(published / "metrics.json")


def test_a_folder_takes_the_place_of_the_old_one(published: Path) -> None:
    with replaced_folder(published) as folder:
        (folder / "metrics.json").write_text("new")
        assert contents(published)["metrics.json"] == "old"
    assert contents(published.parent) == {"shapes/metrics.json": "new"}
    assert published.stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges folders")
def test_there_is_no_moment_without_results(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who looks all the time always sees a whole folder, the old one or the new."""
    seen: list[str | None] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            try:
                seen.append((published / "metrics.json").read_text())
            except FileNotFoundError:
                seen.append(None)

    # Renaming is refused: between two renames a look need not fall.
    monkeypatch.setattr(Path, "replace", lambda *_: pytest.fail("renamed"))
    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for number in range(20):
            with replaced_folder(published) as folder:
                (folder / "metrics.json").write_text(str(number))
    finally:
        done.set()
        watcher.join()
    assert set(seen) <= {"old", *map(str, range(20))}
    assert contents(published.parent) == {"shapes/metrics.json": "19"}


def test_a_system_that_cannot_exchange_folders_renames_twice(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with replaced_folder(published) as folder:
        (folder / "metrics.json").write_text("new")
    assert contents(published.parent) == {"shapes/metrics.json": "new"}
    assert [path.name for path in published.parent.iterdir()] == ["shapes"]


def test_what_cannot_be_exchanged_stays_as_it_is(published: Path) -> None:
    before = contents(published)
    assert not exchanged(published, published.parent / "missing")
    assert contents(published) == before


def test_a_folder_that_was_missing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with replaced_folder(Path("a/b/shapes")) as folder:
        (folder / "metrics.json").write_text("new")
    assert contents(tmp_path) == {"a/b/shapes/metrics.json": "new"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_folder_as_it_was(
    published: Path, error: type[BaseException]
) -> None:
    before = contents(published.parent)
    with pytest.raises(error), replaced_folder(published) as folder:
        (folder / "metrics.json").write_text("new")
        raise error
    assert contents(published.parent) == before
    assert [path.name for path in published.parent.iterdir()] == ["shapes"]


def stage(number: int, accuracy: float, gmacs: float) -> dict[str, Any]:
    """A metrics document, and where the flow keeps it."""
    document = {
        "task": number,
        "accuracy": accuracy,
        "mean_class_recall": accuracy / 2,
        "task_accuracy": [accuracy] * number,
        "task_mean_class_recall": [accuracy / 2] * number,
        "negative_flips": None if number == 1 else 0.25,
        "gmacs": gmacs,
        "parameters": 1000,
    }
    evaluated = {"metrics": CHECKPOINTS.save_json("metrics-merged", document)}
    return {"methods": {"merged": {"evaluated": evaluated}}}


def test_the_results_document_sums_up_all_stages() -> None:
    config = load_config(None, {"data.name": "shapes", "seed": 7, "methods": ["merged"]})
    data: Any = {
        "hash": "d" * 64,
        "train_images": 6,
        "test_images": 2,
        "tasks": [
            {
                "number": number,
                "train": {"names": [name], "hash": "0"},
                "train_images": 3,
                "test_images": 1,
            }
            for number, name in enumerate(("amber", "birch"), start=1)
        ],
    }
    stages: Any = [stage(1, 0.75, 0.5), stage(2, 0.25, 1.5)]
    results = collect(config, data, stages)
    summary = results["summary"]["merged"]
    assert (summary["average_accuracy"], summary["last_accuracy"]) == (0.5, 0.25)
    assert summary["forgetting_accuracy"] == 0.5
    assert (summary["gmacs"], summary["parameters"]) == (1.5, 1000)  # of the last stage
    assert [s["accuracy"] for s in results["variants"]["merged"]["stages"]] == [0.75, 0.25]
    assert [task["classes"] for task in results["tasks"]] == [["amber"], ["birch"]]
    assert results["name"] == "shapes best seed 7"
    assert load_config(None, results["config"]) == config
    assert json.loads(json.dumps(results)) == results


def test_a_published_model_holds_its_graph(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made once; the same model elsewhere takes it over."""
    config = load_config()
    first, second = (Path(shutil.copytree(model_folder, tmp_path / name)) for name in "ab")
    put_graph(config, first)
    names = {"graph.json", "model.json", "model.onnx", "model.safetensors"}
    assert {path.name for path in first.iterdir()} == names
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a", "b"]
    answering = load_predictor(first)
    assert isinstance(answering, GraphPredictor)
    images = list(export.sample_pixels(80, 3))
    for one, other in zip(answering.predict(images), Predictor(first).predict(images), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)

    monkeypatch.setattr(export, "add_graph", lambda *_: pytest.fail("made again"))
    put_graph(config, second, earlier=first)
    assert (second / "model.onnx").read_bytes() == (first / "model.onnx").read_bytes()
    put_graph(load_config(None, {"tracking.onnx_graph": False}), tmp_path / "nowhere")


def test_a_model_that_cannot_be_exported_is_published_and_told_of(
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object) -> None:
        raise ExportError("torch.export cannot trace this network: it thinks")

    monkeypatch.setattr(export, "add_graph", refuse)
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    put_graph(load_config(), folder)
    assert "no ONNX graph, torch will answer: torch.export cannot trace this" in caplog.text
    assert isinstance(load_predictor(folder), Predictor)
