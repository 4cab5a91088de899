from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from dynammo.config import AdapterConfig, BackboneConfig
from dynammo.data.formats.pictures import Form
from dynammo.deploy.export import Smaller, export_model
from dynammo.deploy.graph import load_predictor, read_graph
from dynammo.deploy.predictor import Predictor, save_model
from dynammo.deploy.trial import Labelled, Trial, accept, compared, load_trial, temperature_of
from dynammo.errors import ConfigError, DataError, ExportError
from dynammo.network.backbones import pretrained_weights
from dynammo.network.network import build_network

SIZE = 64
CLASSES = ["dark", "light"]


def pictures(count: int, seed: int) -> Labelled:
    """Noise around two levels of grey."""
    generator = np.random.default_rng(seed)
    targets = np.arange(count) % 2
    noise = generator.integers(0, 60, (count, 3, SIZE, SIZE))
    images = (noise + 60 + 100 * targets[:, None, None, None]).astype(np.uint8)
    return Labelled(images, targets, [f"{index}.png" for index in range(count)])


@pytest.fixture(scope="module")
def trial() -> Trial:
    return Trial(pictures(24, 0), pictures(16, 1))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, trial: Trial) -> Path:
    """Its head is the difference of the classes' mean features, so it answers right."""
    config, adapter = BackboneConfig(name="test_efficientnet", pretrained=False), AdapterConfig()
    weights = pretrained_weights(config, seed=0)
    network = build_network(config, weights, SIZE, adapter)
    images, targets = (
        torch.from_numpy(trial.made_on.images),
        torch.from_numpy(trial.made_on.targets),
    )
    with torch.no_grad():
        features = network.eval()(images)
    means = torch.stack([features[targets == c].mean(0) for c in range(2)])
    weight = (means - means.mean(0)) / (means[0] - means[1]).square().sum() * 4
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(
        folder,
        backbone=config,
        form=SIZE,
        adapter=adapter,
        backbone_weights=weights,
        adapter_weights=network.adapter_state(),
        head={"weight": weight, "bias": -weight @ means.mean(0)},
        classes=CLASSES,
        provenance={},
    )
    return folder


@pytest.fixture(scope="module")
def exported(
    model: Path, trial: Trial, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("out") / "int8"
    return folder, export_model(model, folder, ["onnx"], int8=Smaller(trial, 0.005))


@pytest.fixture(scope="module")
def graph(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with its graph, for tests to trace nothing again."""
    folder = tmp_path_factory.mktemp("graph") / "float"
    export_model(model, folder, ["onnx"])
    return folder


def test_the_graph_computes_in_8_bits_and_answers_as_the_model_does(
    exported: tuple[Path, dict[str, Any]], model: Path, trial: Trial
) -> None:
    folder, report = exported
    made = report["int8"]
    proto = onnx.load(folder / "model.onnx")
    int8 = [t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert len(int8) >= made["convolutions"] - made["float_convolutions"] > 0
    assert made["bytes"]["int8"] < 0.7 * made["bytes"]["float"]
    assert made["bytes"]["int8"] == (folder / "model.onnx").stat().st_size
    images = trial.judged_on.images.transpose(0, 2, 3, 1)
    given, wanted = (load_predictor(own).scores(images) for own in (folder, model))
    assert type(load_predictor(folder)).__name__ == "GraphPredictor"
    assert np.abs(given - wanted).max() < 0.1
    assert (given.argmax(1) == trial.judged_on.targets).all()
    assert made["mean_class_recall"] == {"before": 1.0, "after": 1.0}


def test_the_report_and_the_record_say_what_it_costs(
    exported: tuple[Path, dict[str, Any]],
) -> None:
    folder, report = exported
    assert json.loads((folder / "export.json").read_text()) == report
    made = report["int8"]
    assert set(made["ece"]) == {"before", "after", "without_temperature"}
    assert made["negative_flips"] == []
    assert set(made["ms_one_image_one_thread"]) == {"float", "int8"}
    assert [one["float_convolutions"] for one in made["harm"][:3]] == [0, 0, 1]
    assert all(one["divergence"] >= 0 for one in made["harm"])
    assert read_graph(folder).record["int8"] == {"drop": 0.0, "max_drop": 0.005, "images": 16}


def test_what_costs_too_much_is_refused_and_leaves_nothing(
    model: Path, graph: Path, trial: Trial, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"int8 costs 0\.00 points .* more than -1; nothing was"):
        export_model(model, tmp_path / "out", ["onnx"], template=graph, int8=Smaller(trial, -0.01))
    assert list(tmp_path.iterdir()) == []


def test_int8_is_for_the_graph(model: Path, graph: Path, trial: Trial, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="int8 is for the format onnx"):
        export_model(model, tmp_path / "out", ["safetensors"], int8=Smaller(trial, 0.01))
    with pytest.raises(ConfigError, match="prune is for the format onnx"):
        export_model(model, tmp_path / "out", ["safetensors"], pruned=Smaller(trial, 0.01))
    with pytest.raises(ExportError, match="no blocks that widen and narrow"):  # SiLU, and gates
        export_model(model, tmp_path / "out", ["onnx"], template=graph, pruned=Smaller(trial, 0.01))
    assert list(tmp_path.iterdir()) == []


def test_the_temperature_brings_probabilities_back() -> None:
    wanted = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    assert temperature_of(wanted, 2 * wanted) == pytest.approx(2, rel=1e-3)


def test_flips_are_listed_and_the_limit_holds() -> None:
    labelled = Labelled(np.zeros((4, 3, 2, 2), np.uint8), np.array([0, 0, 1, 1]), list("abcd"))
    right, wrong = (np.array(values, np.float32) for values in ([2, 0], [0, 2]))
    before = np.stack([right, right, wrong, right])
    after = np.stack([right, wrong, wrong, wrong])
    found = compared(before, after, labelled, CLASSES)
    assert found["negative_flips"] == [{"image": "b", "class": "dark", "named": "light"}]
    assert found["positive_flips"] == 1
    assert found["drop"] == pytest.approx(0)
    accept("it", found, 0.0)
    lost = compared(before, np.stack([wrong, wrong, wrong, right]), labelled, CLASSES)
    with pytest.raises(ExportError, match=r"it costs 50\.00 points .*\(75\.00 to 25\.00 on 4"):
        accept("it", lost, 0.4)


def test_training_images_make_the_model_and_test_images_judge_it(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for name in CLASSES:
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                level = 10 * index + (100 if split == "test" else 0)
                picture = Image.new("RGB", (8, 8), (level, 1, 2))
                picture.save(tmp_path / split / name / f"{index}.png")
    trial = load_trial(tmp_path, CLASSES, Form(4))
    assert trial.made_on.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert trial.judged_on.images.shape == (4, 3, 4, 4)
    assert trial.judged_on.images[:, 0, 0, 0].tolist() == [100, 110, 100, 110]
    assert trial.judged_on.names[0] == "test/dark/0.png"
    with pytest.raises(DataError, match="has not learnt"):
        load_trial(tmp_path, ["dark"], Form(4))
    shared = load_trial(tmp_path / "train", CLASSES, Form(4))
    assert len(shared.made_on.targets) + len(shared.judged_on.targets) == 6


def test_the_model_itself_answers_right(model: Path, trial: Trial) -> None:
    scores = Predictor(model).scores(trial.judged_on.images.transpose(0, 2, 3, 1))
    assert (scores.argmax(1) == trial.judged_on.targets).all()
