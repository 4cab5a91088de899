"""A transformer with LoRA through the whole flow: two tasks, merged, folded, read, a graph."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from dynammo.config import BackboneConfig
from dynammo.deploy.graph import GraphPredictor, load_predictor
from dynammo.deploy.predictor import Predictor
from dynammo.network.backbones import pretrained_weights
from dynammo.network.network import build_network
from dynammo.seeds import derive_seed
from tests.flows.project import Project


@pytest.mark.usefixtures("prefect_server")
def test_a_transformer_with_lora_from_pictures_to_a_graph(new: Project, pictures: Path) -> None:
    with new.entered():
        states = new.run(
            backbone__name="test_vit",
            adapter__name="lora",
            adapter__options={"rank": 2, "alpha": 4},
            train__learning_rate=0.01,
            methods=["merged", "unmerged", "frozen"],
            scenario__tasks=[["amber", "birch"], ["coral", "dusk"]],
            tracking__register_model=False,
            tracking__onnx_graph=True,
        )
        assert {f"train adapter {task}" for task in ("1/2", "2/2")} <= states.keys()
        variants = new.read("results.json")["variants"]
        rows = {
            name: list(csv.DictReader((new.results / "predictions" / f"{name}.csv").open()))
            for name in variants
        }
        folder = new.results / "model"
        predictor, graph = Predictor(folder), load_predictor(folder)

    # Folded, the merged model costs what the frozen one does; unmerged pays for each adapter.
    costs = {name: variant["stages"][-1]["gmacs"] for name, variant in variants.items()}
    assert costs["merged"] == costs["frozen"]
    assert costs["unmerged"] > 1.9 * costs["frozen"]
    assert predictor.manifest.adapter is None and not predictor.model.network.adapters()
    # Three blocks' class tokens of 64 numbers, their positive and their negative parts.
    assert predictor.model.head.weight.shape == (4, 3 * 64 * 2)
    # What training changed is in the weights that LoRA stands beside, and in no others.
    config = BackboneConfig(name="test_vit", pretrained=False, levels=3)
    weights = pretrained_weights(config, derive_seed(3, "backbone"))
    frozen = build_network(config, weights, 48).backbone_state()
    folded = predictor.model.network.backbone_state()
    assert folded.keys() == frozen.keys()
    changed = {name for name in frozen if not torch.equal(folded[name], frozen[name])}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert changed == {f"blocks.{i}.{layer}.weight" for i in range(6) for layer in layers}
    # Whatever engine reads it answers as the results say.
    assert len({row["predicted"] for row in rows["merged"]}) == 4
    assert isinstance(graph, GraphPredictor)
    for engine in (predictor, graph):
        answers = engine.predict([pictures / row["file"] for row in rows["merged"]])
        assert [answer.label for answer in answers] == [row["predicted"] for row in rows["merged"]]
        expected = torch.tensor([float(row["confidence"]) for row in rows["merged"]])
        found = torch.tensor([answer.probability for answer in answers])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
