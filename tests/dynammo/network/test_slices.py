"""Volumes: whatever a network does with a strip follows from what it does with its slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dynammo.config import AdapterConfig, BackboneConfig, load_config
from dynammo.data.formats.pictures import Form
from dynammo.deploy.export import add_graph
from dynammo.deploy.graph import GraphPredictor
from dynammo.deploy.heat_map import heat_maps
from dynammo.deploy.predictor import Predictor
from dynammo.errors import ConfigError
from dynammo.network.backbones import pretrained_weights
from dynammo.network.cost import count_macs
from dynammo.network.features import views_of
from dynammo.network.network import Network, build_network, build_unmerged_network
from dynammo.network.slices import apart, mean, thirds
from dynammo.training.frozen_prefix import run_once, split_at_first_adapter
from tests.models import TINY, random_model

FORM = Form(64, slices=4)
CLOSE = {"atol": 1e-4, "rtol": 1e-4}  # convolutions sum in another order for other batches


def strips(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, FORM.height, FORM.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def network(form: Form | int, pool: str = "mean", levels: int | None = None) -> Network:
    config = BackboneConfig(name=TINY.name, pretrained=False, levels=levels, pool=pool)
    weights = pretrained_weights(TINY, 0)
    return build_network(config, weights, form, AdapterConfig(name="linear"), seed=1)


def test_strips_come_apart_volume_by_volume() -> None:
    volumes = strips(2)
    slices = apart(volumes, 4)
    assert slices.shape == (8, 3, 64, 64)
    torch.testing.assert_close(slices[5], volumes[1, :, 64:128])


def test_pools_by_hand() -> None:
    """Of six slices with the features 0 to 5, in pairs: 0.5, 2.5, 4.5; of two none is empty."""
    features = torch.arange(6.0).view(1, 6, 1)
    assert mean(features).tolist() == [[2.5]]
    assert thirds(features).tolist() == [[0.5, 2.5, 4.5]]
    assert thirds(features[:, :2]).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("levels", [None, 2])
def test_features_are_pooled_from_those_of_the_slices(levels: int | None) -> None:
    whole, ordered, single = (
        network(form, pool, levels)
        for form, pool in ((FORM, "mean"), (FORM, "thirds"), (64, "mean"))
    )
    with torch.no_grad():
        own = single(apart(strips(), 4)).view(3, 4, -1)
        torch.testing.assert_close(whole(strips()), own.mean(1), **CLOSE)
        torch.testing.assert_close(ordered(strips()), thirds(own), **CLOSE)
    assert ordered.feature_size == 3 * whole.feature_size == 3 * single.feature_size
    assert count_macs(whole, FORM) == 4 * count_macs(single, 64)


def test_adapters_side_by_side_see_the_same_slices() -> None:
    weights, states = pretrained_weights(TINY, 0), []
    for seed in (1, 2):
        adapted = build_network(TINY, weights, FORM, AdapterConfig(name="linear"), seed)
        state = adapted.adapter_state()
        states.append({name: value + 0.1 * seed for name, value in state.items()})
    both = build_unmerged_network(TINY, weights, FORM, AdapterConfig(name="linear"), states)
    with torch.no_grad():
        found = both(strips())
        for place, state in enumerate(states):
            adapted = build_network(TINY, weights, FORM, AdapterConfig(name="linear"))
            adapted.load_adapter_state(state)
            own = found[3 * place : 3 * (place + 1)]
            torch.testing.assert_close(own, adapted(strips()), **CLOSE)


def test_the_frozen_prefix_has_a_row_a_volume() -> None:
    adapted = network(FORM)
    prefix, suffix = split_at_first_adapter(adapted)
    kept = run_once(prefix, views_of(strips(), flip=True), 2**30, batch_size=2)
    assert kept.shape[:3] == (2, 3, 4)
    with torch.no_grad():
        rows = suffix(kept[torch.tensor([0, 1]), torch.tensor([2, 0])])
        expected = torch.stack([adapted(strips())[2], adapted(strips().flip(-1))[0]])
        torch.testing.assert_close(rows, expected, **CLOSE)


def test_turns_are_of_each_slice() -> None:
    views = views_of(strips(), flip=True, turns=True)
    slices = views_of(apart(strips(), 4), flip=True, turns=True)
    assert len(views) == 8
    for view, own in zip(views, slices, strict=True):
        torch.testing.assert_close(apart(view, 4), own)


def test_both_engines_answer_volumes(tmp_path: Path) -> None:
    folder = random_model(tmp_path / "model", ["a", "b"], form=FORM)
    report = add_graph(folder)
    assert report["files"]["onnx"]["probability_difference"] < 1e-4
    volumes = np.random.default_rng(0).integers(0, 256, (2, 9, 40, 30), np.uint8)
    slow, fast = Predictor(folder), GraphPredictor(folder)
    assert slow.form == fast.form == FORM
    given = [*volumes]
    for one, other in zip(slow.predict(given), fast.predict(given), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)


def test_a_heat_map_has_one_for_each_slice(tmp_path: Path) -> None:
    """Of four equal slices all maps are the same."""
    model = Predictor(random_model(tmp_path / "model", ["a", "b"], form=FORM)).model
    same = strips(1)[:, :, :64].repeat(1, 1, 4, 1)
    heat = heat_maps(model, same, torch.tensor([0]))
    assert heat.shape == (1, FORM.height, 64)
    for own in heat.view(4, 64, 64):
        torch.testing.assert_close(own, heat[0, :64], **CLOSE)


def test_a_pool_without_slices_and_a_window_that_falls_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"backbone.pool thirds is of volumes: set image.slices"):
        load_config(None, {"backbone.pool": "thirds"})
    with pytest.raises(ConfigError, match="expected two rising numbers, got 5 and 5"):
        load_config(None, {"image.window": [5, 5]})
