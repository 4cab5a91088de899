from __future__ import annotations

import csv
import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynammo.data.formats.pictures import load_image
from dynammo.deploy.bundle import export_bundle
from dynammo.deploy.predictor import Predictor
from dynammo.errors import CheckpointError, ExportError


@pytest.fixture(scope="module")
def bundle(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "made"
    report = export_bundle(model_folder, folder)
    assert list(report["files"]) == ["pt2"]
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        (folder / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    return folder


def test_its_own_code_answers_as_the_model_does(bundle: Path, model_folder: Path) -> None:
    file = bundle / "scripts" / "network.py"
    assert "dynammo." not in "\n".join(
        line for line in file.read_text().splitlines() if "import" in line
    )
    spec = spec_from_file_location("bundle_network", file)
    assert spec and spec.loader
    code = module_from_spec(spec)
    spec.loader.exec_module(code)
    network = code.Exported(bundle / "models" / "model.pt2").to("cpu").eval()
    predictor = Predictor(model_folder)
    pictures = sorted((bundle / "images").iterdir())
    read = torch.stack([code.read_picture(file, predictor.form.size) for file in pictures])
    own = np.stack([load_image(file, predictor.form.size) for file in pictures])
    assert (read.permute(0, 2, 3, 1).numpy() == own).all() and read.dtype == torch.float32
    with torch.no_grad():
        given = network(read)
    np.testing.assert_allclose(given.numpy(), predictor.scores(own), atol=1e-5)


def test_what_it_says_of_itself(bundle: Path, model_folder: Path) -> None:
    predictor = Predictor(model_folder)
    said = json.loads((bundle / "configs" / "metadata.json").read_text())
    form = said["network_data_format"]
    assert form["inputs"]["image"]["spatial_shape"] == [predictor.form.size] * 2
    assert list(form["outputs"]["pred"]["channel_def"].values()) == predictor.classes
    assert said["version"] == f"0+{predictor.manifest.weights_sha256[:12]}"


def test_nothing_is_replaced_and_nothing_left_behind(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ExportError, match="full is no empty folder: choose another one"):
        export_bundle(model_folder, tmp_path / "full")
    with pytest.raises(CheckpointError, match="holds no usable model"):
        export_bundle(tmp_path, tmp_path / "made")
    with pytest.raises(ExportError, match="cannot write"):
        export_bundle(model_folder, tmp_path / "full" / "thesis.tex" / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_monai_runs_it(bundle: Path, model_folder: Path) -> None:
    for package in ("monai", "ignite", "fire"):
        pytest.importorskip(package, reason="pip install monai pytorch-ignite fire")
    configs = ["--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"]
    for command in (["verify_net_in_out", "network_def"], ["run"]):
        subprocess.run(
            [sys.executable, "-m", "monai.bundle", *command, *configs],
            cwd=bundle,
            check=True,
            capture_output=True,
        )
    with (bundle / "eval" / "predictions.csv").open() as file:
        rows = {Path(name).name: [float(v) for v in values] for name, *values in csv.reader(file)}
    predictor = Predictor(model_folder)
    for picture in (bundle / "images").iterdir():
        (answer,) = predictor.predict([picture])
        expected = list(answer.probabilities.values())
        assert rows[picture.name] == pytest.approx(expected, abs=1e-5)
