"""Model folders that were damaged or changed: none may answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from dynammo.deploy.predictor import Predictor
from dynammo.errors import CheckpointError
from dynammo.state import State
from tasks.support.mlflow.pyfunc_model import ImageClassifier
from tests.models import reseal


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model_folder, tmp_path / "model")


def refused(folder: Path, message: str = "") -> None:
    with pytest.raises(
        CheckpointError, match=rf"model holds no usable model: .*{message}"
    ) as caught:
        Predictor(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("where", [index / 16 for index in range(16)])
def test_a_flipped_bit(folder: Path, name: str, where: float) -> None:
    content = bytearray((folder / name).read_bytes())
    content[int(where * len(content))] ^= 1
    (folder / name).write_bytes(content)
    refused(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["keratosis", "naevus", "melanoma"]},
        {"image_size": 224},
        {"provenance": {"data": "e" * 64}},
        {"adapter": {"name": "conv", "options": {"alpha": 2.0}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_value_in_the_manifest(folder: Path, change: dict[str, object]) -> None:
    manifest = json.loads((folder / "model.json").read_text())
    assert manifest | change != manifest
    (folder / "model.json").write_text(json.dumps(manifest | change, indent=2, sort_keys=True))
    refused(folder, r"model\.json: it has been changed")


def test_a_key_given_twice(folder: Path) -> None:
    text = (folder / "model.json").read_text()
    (folder / "model.json").write_text(text.replace("{", '{"classes": ["a", "b", "c"],', 1))
    refused(folder, r"model\.json: it has been changed")


def test_a_changed_model_is_not_served(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 128]))
    served = ImageClassifier()
    with pytest.raises(CheckpointError, match="holds no usable model"):
        served.load_context(SimpleNamespace(artifacts={"model": str(folder)}))


def test_a_manifest_without_a_hash(folder: Path) -> None:
    manifest = json.loads((folder / "model.json").read_text())
    del manifest["document_sha256"]
    (folder / "model.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    refused(folder, r"model\.json: it has been changed")


def test_a_permuted_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["head/weight"] = tensors["head/weight"].flip(0).contiguous()
    save_file(tensors, folder / "model.safetensors")
    refused(folder, r"model\.safetensors is not the one of this model\.json")


# From here on the hashes are made anew, too: what is wrong is wrong in itself.


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["naevus", "naevus", "melanoma"], "cannot be told apart"),
        (["na\u00efve", "nai\u0308ve", "b"], "cannot be told apart"),  # one composed, one not
        ([1, 2, 3], "valid string"),
        (["a", "", "b"], "is empty"),
        (["a", " ", "b"], "is empty"),
        (["a", "b ", "c"], "do not show"),
        (["a", "b\n", "c"], "do not show"),
        (["a", "b\u202ec", "d"], "do not show"),  # turns the text around
        (["a", "b\u200b", "b"], "do not show"),  # zero width
        (["a", "\ud800", "b"], ""),
        (["a", "=HYPERLINK(A1)", "b"], "formula"),
        ("abc", "valid list"),
    ],
)
def test_class_names_that_mislead(folder: Path, classes: object, message: str) -> None:
    reseal(folder, {"classes": classes})
    refused(folder, message)


def change(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], State]:
    return lambda tensors: {**tensors, name: make(tensors[name])}


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (change("head/weight", lambda t: t.fill_(torch.nan)), "head/weight: .* not finite"),
        (change("head/bias", lambda t: t.fill_(torch.inf)), "head/bias: .* not finite"),
        (change("backbone/layer1.0.conv1.weight", lambda t: t * torch.nan), "not finite"),
        (change("head/weight", lambda t: t.half()), "float16 .*expected torch.float32"),
        (
            change("backbone/layer1.0.conv1.weight", lambda t: t.half()),
            "float16 .*expected torch.float32",
        ),
        (change("head/weight", lambda t: t.double()), "float64 .*expected torch.float32"),
        (change("head/bias", lambda t: t[:2].clone()), r"\(2,\), expected .*\(3,\)"),
        (lambda t: {**t, "more": torch.ones(1)}, "it holds more"),
        (lambda t: {**t, "head/temperature": torch.ones(1)}, "it holds head/temperature"),
        (lambda t: {**t, "backbone/fc.weight": torch.ones(1)}, "it holds backbone/fc.weight"),
        (lambda t: {**t, "head/power": torch.tensor(0.5)}, "head/power is torch.float32"),
        (lambda t: {k: v for k, v in t.items() if k != "head/bias"}, "it lacks head/bias"),
        (lambda t: {}, ""),
    ],
)
def test_tensors_that_are_not_the_networks(
    folder: Path, harm: Callable[[State], State], message: str
) -> None:
    reseal(folder, {}, harm(load_file(folder / "model.safetensors")))
    refused(folder, message)


def test_a_manifest_200000_deep(folder: Path) -> None:
    (folder / "model.json").write_text('{"format": 2, "a":' + "[" * 200_000 + "]" * 200_000 + "}")
    refused(folder, r"model\.json: .*recursion")
