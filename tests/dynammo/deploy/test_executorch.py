"""The form for phones: checked as the others are, and its refusals are lines."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from dynammo.config import AdapterConfig, BackboneConfig
from dynammo.deploy.export import export_model, sample_pixels
from dynammo.deploy.predictor import Predictor
from dynammo.errors import ExportError
from dynammo.extras import MissingExtra
from tests.models import random_model

NEEDS_EXECUTORCH = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None,
    reason='no ExecuTorch: pip install "dynammo[executorch]"',
)


def test_without_executorch_the_extra_is_named(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "dynammo.deploy.executorch", raising=False)
    monkeypatch.setitem(sys.modules, "executorch", None)
    monkeypatch.setitem(sys.modules, "executorch.backends", None)
    with pytest.raises(MissingExtra, match=r'pip install "dynammo\[executorch\]"'):
        export_model(model_folder, tmp_path / "export", ["executorch"])
    assert not (tmp_path / "export").exists()


@NEEDS_EXECUTORCH
def test_what_xnnpack_cannot_compute_is_refused(model_folder: Path, tmp_path: Path) -> None:
    """ExecuTorch 1.5.1 converts timm's test_resnet, and XNNPACK then finds a shape invalid."""
    with pytest.raises(ExportError, match=r"^ExecuTorch cannot run this network: [^\n]+$"):
        export_model(model_folder, tmp_path / "export", ["executorch"])
    assert not (tmp_path / "export").exists()


@NEEDS_EXECUTORCH
def test_it_answers_as_the_model_and_says_what_it_is(tmp_path: Path) -> None:
    from executorch.runtime import Runtime

    from dynammo.deploy.executorch import load_executorch

    model = random_model(
        tmp_path / "model",
        ["melanoma", "naevus", "keratosis"],
        BackboneConfig(pretrained=False, levels=3),
        AdapterConfig(name="linear"),
    )
    report = export_model(model, tmp_path / "export", ["executorch"])
    assert list(report["files"]) == ["executorch"]
    assert report["files"]["executorch"]["logit_difference"] < 1e-4
    predictor = Predictor(model)
    pixels = torch.from_numpy(sample_pixels(predictor.form, 3)).permute(0, 3, 1, 2).contiguous()
    logits, probabilities = load_executorch(tmp_path / "export/model.pte")(pixels)
    assert logits.shape == (3, len(predictor.classes))
    torch.testing.assert_close(
        probabilities.double(), predictor.probabilities(pixels), rtol=1e-4, atol=1e-5
    )
    program = Runtime.get().load_program(tmp_path / "export/model.pte")
    assert {"forward", "classes", "image_size"} <= program.method_names
    method = program.load_method("image_size")
    assert method is not None and method.execute([]) == [str(predictor.form.size)]
