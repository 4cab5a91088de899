"""A new adapter, merge rule or data set is one file and one registry line: nothing else changes."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynammo.adapters import ADAPTERS
from dynammo.config import load_config
from dynammo.data import DATA_SOURCES
from dynammo.data.checks import check_image_set
from dynammo.data.scenario import build_scenario
from dynammo.data.store import ImageStore, build_store
from dynammo.errors import ConfigError
from dynammo.merging import MERGE_RULES
from dynammo.network.backbones import pretrained_weights
from dynammo.network.network import build_network, build_unmerged_network
from dynammo.registry import Registry
from dynammo.training.loop import train_adapter

BACKBONE = {"backbone.name": "test_resnet", "backbone.pretrained": False, "image.size": 64}

ADAPTER = """
from torch import nn

class Gate(nn.Module):
    def __init__(self, channels, start=0.5):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1), start))

    def forward(self, x):
        return self.scale * x

import torch
"""

MERGE_RULE = """
def newest(adapters):
    *_, state = adapters
    return dict(state)
"""

DATA_SOURCE = """
from dynammo.data.samples import list_samples

def load(path):
    # <split>_<class>_<number>.png, all in one folder
    rows = []
    for file in sorted(path.glob("*.png")):
        split, label, _ = file.stem.split("_")
        rows.append((file.name, split, label, None))
    return list_samples(path, rows)
"""


@pytest.fixture
def register(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Registry, str, str, str], None]]:
    """Write a module that any user could write, and add its line to a table for one test."""
    monkeypatch.syspath_prepend(tmp_path / "plugins")
    before = set(sys.modules)

    def add(registry: Registry, name: str, attribute: str, code: str) -> None:
        module = f"plugged_in_{name}"
        (tmp_path / "plugins").mkdir(exist_ok=True)
        (tmp_path / "plugins" / f"{module}.py").write_text(code)
        monkeypatch.setattr(registry, "_targets", dict(registry._targets))
        registry.add(name, f"{module}:{attribute}")

    yield add
    for module in set(sys.modules) - before:
        if module.startswith("plugged_in_"):
            del sys.modules[module]


def test_a_new_adapter(register: Callable[[Registry, str, str, str], None]) -> None:
    chosen = {**BACKBONE, "adapter.name": "gate", "adapter.options": {"start": 0.25}}
    with pytest.raises(ConfigError, match=r"unknown adapter 'gate'; known: .*conv, .*linear"):
        load_config(None, chosen)
    register(ADAPTERS, "gate", "Gate", ADAPTER)
    config = load_config(None, {**chosen, "train.epochs": 1, "train.batch_size": 4})

    weights = pretrained_weights(config.backbone, seed=0)
    network = build_network(config.backbone, weights, config.image.size, config.adapter)
    initial = network.adapter_state()
    assert {name: value.unique().tolist() for name, value in initial.items()} == {
        f"layer{i}.scale": [0.25] for i in (1, 2, 3, 4)
    }
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0])
    trained = train_adapter(network, images, labels, 2, config.train, seed=0)
    assert not torch.equal(trained.adapter["layer1.scale"], initial["layer1.scale"])
    # It is merged, and runs unmerged, as any other.
    states = [initial, trained.adapter]
    merged = MERGE_RULES["average"](states)
    expected = (initial["layer1.scale"] + trained.adapter["layer1.scale"]) / 2
    torch.testing.assert_close(merged["layer1.scale"], expected)
    network.load_adapter_state(merged)
    together = build_unmerged_network(
        config.backbone, weights, config.image.size, config.adapter, states
    )
    assert together(images).shape == (2 * 4, network.feature_size)


def test_options_of_a_new_adapter_are_checked(
    register: Callable[[Registry, str, str, str], None],
) -> None:
    register(ADAPTERS, "gate", "Gate", ADAPTER)
    wrong = {**BACKBONE, "adapter.name": "gate", "adapter.options": {"width": 1}}
    config = load_config(None, wrong)
    with pytest.raises(ConfigError, match=r"adapter\.options for 'gate': .*'width'"):
        build_network(config.backbone, None, config.image.size, config.adapter)


def test_a_new_merge_rule(register: Callable[[Registry, str, str, str], None]) -> None:
    with pytest.raises(ConfigError, match=r"unknown merge rule 'newest'; known: .*average"):
        load_config(None, {"merge.rule": "newest"})
    register(MERGE_RULES, "newest", "newest", MERGE_RULE)
    config = load_config(None, {**BACKBONE, "merge.rule": "newest"})

    networks = [
        build_network(config.backbone, None, config.image.size, config.adapter, seed)
        for seed in (1, 2)
    ]
    states = [network.adapter_state() for network in networks]
    merged = MERGE_RULES[config.merge.rule](iter(states))  # rules may stream
    networks[0].load_adapter_state(merged)
    for name, value in networks[0].adapter_state().items():
        assert torch.equal(value, states[1][name])


def test_a_new_data_set(
    register: Callable[[Registry, str, str, str], None], tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("cat", "dog", "newt"):
            for number in range(2):
                pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{split}_{label}_{number}.png")

    chosen = {
        "data.name": "zoo",
        "data.source": "flat",
        "data.path": str(folder),
        "scenario.classes_per_task": 2,
        "scenario.class_order": "sorted",
        "image.size": 16,
    }
    with pytest.raises(ConfigError, match=r"unknown data source 'flat'; known: .*csv, .*folder"):
        load_config(None, chosen)
    register(DATA_SOURCES, "flat", "load", DATA_SOURCE)
    config = load_config(None, chosen)

    image_set = DATA_SOURCES[config.data.source](Path(config.data.path))
    check_image_set(image_set)
    assert image_set.classes == ("cat", "dog", "newt")
    scenario = build_scenario(image_set, config.scenario, config.memory, config.seed)
    assert [task.classes for task in scenario] == [("cat", "dog"), ("newt",)]
    store = ImageStore.open(build_store(image_set, config.image.size, tmp_path / "store"))
    assert store.load(scenario.train(scenario[0])).shape == (4, 3, 16, 16)


def test_a_registration_lasts_for_its_test_only() -> None:
    for registry in (ADAPTERS, MERGE_RULES, DATA_SOURCES):
        assert not {"gate", "newest", "flat"} & set(registry)
    assert not [name for name in sys.modules if name.startswith("plugged_in_")]
