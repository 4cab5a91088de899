"""Model folders: of random weights, changed ones, and a graph made by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors.torch import load_file, save

from dynammo.checkpoint import sealed
from dynammo.config import AdapterConfig, BackboneConfig
from dynammo.data.formats.pictures import Form
from dynammo.deploy.predictor import save_model
from dynammo.heads.linear import new_head
from dynammo.network.backbones import pretrained_weights
from dynammo.network.network import build_network
from dynammo.state import State

TINY = BackboneConfig(name="test_resnet", pretrained=False)


def random_model(
    folder: Path,
    classes: Sequence[str],
    backbone: BackboneConfig = TINY,
    adapter: AdapterConfig | None = None,
    seed: int = 1,
    provenance: Mapping[str, Any] | None = None,
    form: Form | int = 64,
) -> Path:
    """A model as `save_model` writes it; its answers mean nothing."""
    adapter = adapter or AdapterConfig()
    weights = pretrained_weights(backbone, seed=seed)
    network = build_network(backbone, weights, form, adapter, seed=seed)
    save_model(
        folder,
        backbone=backbone,
        form=form,
        adapter=adapter,
        backbone_weights=weights,
        adapter_weights=network.adapter_state(),
        head=new_head(network.feature_size, len(classes), seed=seed),
        classes=classes,
        provenance=provenance or {},
    )
    return folder


def reseal(folder: Path, change: Mapping[str, object], tensors: State | None = None) -> None:
    """Change `model.json`, and the weights, as someone does who makes the hashes anew.

    Args:
        folder: of a model.
        change: keys of `model.json`; None takes one out.
        tensors: to replace those of the model.
    """
    weights = save(load_file(folder / "model.safetensors") if tensors is None else tensors)
    (folder / "model.safetensors").write_bytes(weights)
    manifest = json.loads((folder / "model.json").read_text())
    del manifest["document_sha256"]
    manifest |= {"weights_sha256": hashlib.sha256(weights).hexdigest(), **change}
    manifest = {
        key: value for key, value in manifest.items() if value is not None or key == "adapter"
    }
    (folder / "model.json").write_bytes(sealed(manifest))


# Weights of `graph_folder`: what a class makes of the mean red, green and blue, 0 to 255.
BY_COLOUR = {"red": [0.1, 0, 0], "green": [0, 0.1, 0], "blue": [0, 0, 0.1]}


def graph_folder(folder: Path, size: int = 16) -> Path:
    """A model folder with nothing but a graph: softmax of a linear function of the mean colour."""
    helper, types = onnx.helper, onnx.TensorProto
    weights = np.array(list(BY_COLOUR.values()), dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["pixels"], to=types.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
            helper.make_node("Gemm", ["means", "weights"], ["logits"], transB=1),
            helper.make_node("Softmax", ["logits"], ["probabilities"]),
        ],
        "by colour",
        [helper.make_tensor_value_info("images", types.UINT8, ["batch", 3, size, size])],
        [
            helper.make_tensor_value_info(name, types.FLOAT, ["batch", 3])
            for name in ("logits", "probabilities")
        ],
        [
            onnx.numpy_helper.from_array(weights, "weights"),
            onnx.numpy_helper.from_array(np.array([2, 3]), "axes"),
        ],
    )
    opset = helper.make_opsetid("", 18)
    content = helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
    document = {"format": 2, "classes": list(BY_COLOUR), "image_size": size}
    manifest = sealed(document)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "model.json").write_bytes(manifest)
    record(folder)
    return folder


def reseal_graph(folder: Path, **values: Any) -> None:
    """Change `model.json` of a folder with a graph, and make all hashes anew."""
    document = json.loads((folder / "model.json").read_bytes())
    del document["document_sha256"]
    (folder / "model.json").write_bytes(sealed({**document, **values}))
    record(folder)


def record(folder: Path) -> None:
    """Make `graph.json` anew for what is in the folder."""
    hashes = {
        key: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for key, name in (("model_sha256", "model.json"), ("sha256", "model.onnx"))
    }
    (folder / "graph.json").write_bytes(sealed(hashes))
