"""Attention by hand, at its start, merged, and in networks that train."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynammo.adapters.attention import AttentionAdapter
from dynammo.config import AdapterConfig, BackboneConfig, TrainConfig
from dynammo.errors import ConfigError
from dynammo.merging.average import average
from dynammo.network.backbones import pretrained_weights
from dynammo.network.folding import why_not_foldable
from dynammo.network.network import Network, build_network
from dynammo.training.loop import train_adapter

GATES = ["se", "eca", "cbam"]
NETWORKS = {"test_resnet": 48, "test_vit": 32}  # the latter: 2x2 patches and a class token
THREE = math.log(3)  # sigmoid(log 3) is 3/4, so the gate is 1.5; of -log 3 it is 0.5


def fill(adapter: nn.Module, **values: Any) -> None:
    """Set parameters, named with __ for a dot, and all others to zero."""
    wanted = {name.replace("__", "."): value for name, value in values.items()}
    for name, parameter in adapter.named_parameters():
        given = torch.tensor(wanted.pop(name, 0.0))
        parameter.data = given.reshape(parameter.shape) if given.dim() else 0 * parameter + given
    assert not wanted


def drawn(network: Network) -> dict[str, Tensor]:
    """A state of the adapters that no training gives."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(value.shape, generator=generator)
        for name, value in network.adapter_state().items()
    }


def built(name: str, gate: str, size: int | None = None) -> Network:
    config = BackboneConfig(name=name, pretrained=False)
    kind = AdapterConfig(name="attention", options={"gate": gate})
    return build_network(config, pretrained_weights(config, seed=0), size or NETWORKS[name], kind)


def noise(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=generator)


def close(found: Tensor, expected: Tensor) -> None:
    """Variances have 1e-5 added to them."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def maps(*means: float) -> Tensor:
    """(1, C, 2, 2), channels of these means."""
    return torch.tensor(means).view(1, -1, 1, 1) + torch.tensor([[-1.0, 1.0], [1.0, -1.0]])


@pytest.mark.parametrize("size", [1, 100])
def test_squeeze_and_excitation_by_hand(size: float) -> None:
    adapter = AttentionAdapter(4)
    fill(
        adapter,
        gate__squeeze__weight=[0.0, 0.0, 1.0, 0.0],
        gate__excite__weight=[THREE, -THREE, 0.0, 0.0],
    )
    x = size * maps(1, 1, 3, 3)
    # The means become -1, -1, 1 and 1, whatever their size, and z is log 3, -log 3, 0 and 0.
    close(adapter(x) / size, x / size * torch.tensor([0.5, -0.5, 0, 0]).view(1, 4, 1, 1))
    assert not adapter(-x).any()  # of the third's -1 ReLU leaves nothing


def test_efficient_channel_attention_by_hand() -> None:
    adapter = AttentionAdapter(4, gate="eca", kernel=3)
    fill(adapter, gate__mix__weight=[0.0, 0.0, THREE])  # the next channel's mean alone
    x = maps(1, 3, 3, 1)  # normalised -1, 1, 1, -1; behind the last there is none
    close(adapter(x), x * torch.tensor([0.5, 0.5, -0.5, 0]).view(1, 4, 1, 1))


@pytest.mark.parametrize(("channels", "kernel"), [(64, 3), (128, 5), (512, 5), (2048, 7), (1, 1)])
def test_the_kernel_follows_from_the_channels_as_published(channels: int, kernel: int) -> None:
    weights = AttentionAdapter(channels, gate="eca").state_dict()
    assert {name: value.numel() for name, value in weights.items()} == {"gate.mix.weight": kernel}


def test_channels_and_then_places_by_hand() -> None:
    adapter = AttentionAdapter(2, gate="cbam", kernel=1)
    fill(
        adapter,
        gate__channel__squeeze__weight=[1.0, 0.0],
        gate__channel__excite__weight=[THREE, 0.0],
        gate__place__weight=[2 * THREE, -THREE],
    )
    x = torch.tensor([[[0.0, 0.0], [4.0, 4.0]], [[2.0, 2.0], [2.0, 2.0]]])
    # Both means are 2, normalised 0; the maxima 4 and 2 become 1 and -1: the gates are 1.5 and 1.
    # Of 0, 6 and 2, 2 the means are 1 and 4, the maxima 2 and 6: both become -1 and 1.
    expected = torch.tensor([[[0.0, 0.0], [4 * 1.25, 4 * 1.25]], [[-1.0, -1.0], [1.0, 1.0]]])
    close(adapter(x[None])[0], expected)


def test_a_places_gate_follows_from_its_neighbours() -> None:
    adapter = AttentionAdapter(1, gate="cbam", kernel=3)
    kernel = torch.zeros(1, 2, 3, 3)
    kernel[0, 0, 1, 0] = THREE  # the mean on the left; beyond the border it is 0
    fill(adapter, gate__place__weight=kernel.tolist())
    x = torch.tensor([[3.0, 1.0, 3.0], [1.0, 1.0, 3.0]])  # normalised 1, -1, 1 and -1, -1, 1
    gates = torch.tensor([[1.0, 1.5, 0.5], [1.0, 0.5, 0.5]])
    close(adapter(x[None, None])[0, 0], (gates - 1) * x)


@pytest.mark.parametrize(
    ("gate", "last"), [("se", ["excite"]), ("eca", ["mix"]), ("cbam", ["channel.excite", "place"])]
)
def test_it_starts_at_zero_with_a_gradient(gate: Any, last: list[str]) -> None:
    adapter = AttentionAdapter(4, gate=gate)
    for name, parameter in adapter.named_parameters():
        if "squeeze" in name:
            nn.init.constant_(parameter, 0.5)  # nothing that ReLU stops
    x = 1 + torch.rand(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    residual = adapter(x)
    assert torch.equal(residual, torch.zeros_like(x))
    residual.sum().backward()
    moving = {name for name, p in adapter.named_parameters() if p.grad.any()}
    layers = [adapter.gate.get_submodule(part) for part in last]
    assert moving == {
        f"gate.{part}.{name}"
        for part, layer in zip(last, layers, strict=True)
        for name, _ in layer.named_parameters()
    }


def test_the_gradient_at_the_start_by_hand() -> None:
    """d A / d z = x / 2, and z is w and -w: four values of 3 and of 1 give 4 (3 - 1) / 2."""
    adapter = AttentionAdapter(2, gate="eca", kernel=1)
    adapter(maps(3, 1)).sum().backward()
    assert [p.grad.item() for p in adapter.parameters()] == [pytest.approx(4, rel=1e-4)]


def test_averaged_adapters() -> None:
    """Of eca z is averaged: 2 log 3 and 0 make log 3."""
    adapter = AttentionAdapter(2, gate="eca", kernel=1)
    states = [{"gate.mix.weight": torch.full((1, 1, 1), value)} for value in (2 * THREE, 0.0)]
    adapter.load_state_dict(average(states))
    x = maps(3, 1)
    close(adapter(x), x * torch.tensor([0.5, -0.5]).view(1, 2, 1, 1))


@pytest.mark.parametrize("gate", GATES)
def test_a_map_of_one_number_has_gates(gate: Any) -> None:
    """Nothing differs, so nothing is told apart; it must not become NaN."""
    adapter = AttentionAdapter(3, gate=gate)
    x = torch.full((1, 3, 4, 4), 7.0)
    adapter(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in adapter.parameters())


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_train_from_the_pretrained_one_and_merge(name: str, gate: str) -> None:
    network = built(name, gate)
    images = noise(NETWORKS[name])
    config = BackboneConfig(name=name, pretrained=False)
    bare = build_network(config, network.backbone_state(), NETWORKS[name])
    start, frozen = network.adapter_state(), network.backbone_state()
    with torch.no_grad():
        assert torch.equal(network(images), bare(images))
    once = TrainConfig(epochs=1, batch_size=4, learning_rate=0.1)
    labels = torch.tensor([0, 1, 0, 1])
    trained = train_adapter(network, images, labels, 2, once, seed=0).adapter
    moved = {key for key in trained if not torch.equal(trained[key], start[key])}
    for position in network.positions:
        assert any(key.startswith(position) for key in moved), position
    assert all(torch.equal(value, frozen[key]) for key, value in network.backbone_state().items())
    with torch.no_grad():
        assert not torch.equal(network(images), bare(images))
        merged = average([start, trained])
        network.load_adapter_state(merged)
        assert network(images).isfinite().all()
    for key, value in merged.items():
        torch.testing.assert_close(value, (start[key] + trained[key]) / 2)


@pytest.mark.parametrize("gate", GATES)
def test_the_class_token_is_neither_pooled_nor_changed(gate: str) -> None:
    network = built("test_vit", gate)
    network.load_adapter_state(drawn(network))
    position = network.positions[0]
    given: Any = network.stages()[position]
    tokens = torch.randn(1, 1 + 4, network.feature_size)
    other = torch.cat([tokens[:, :1] + 1, tokens[:, 1:]], dim=1)
    residual = given.layout.residual(given.adapter, tokens)
    assert not residual[:, 0].any() and residual[:, 1:].all()
    assert torch.equal(given.layout.residual(given.adapter, other), residual)


@pytest.mark.parametrize("gate", GATES)
def test_images_do_not_mix(gate: Any) -> None:
    adapter = AttentionAdapter(4, gate=gate)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 4, 5, 5)
    torch.testing.assert_close(adapter(x)[1:2], adapter(x[1:2]))


def test_it_cannot_be_folded() -> None:
    network = built("test_resnet", "se")
    reason = "AttentionAdapter is not linear (it has no method as_linear)"
    assert why_not_foldable(network) == {name: [reason] for name in network.positions}


def test_one_place_is_too_few() -> None:
    with pytest.raises(RuntimeError, match=r"at least 2x2, got \(1, 4\)"):
        AttentionAdapter(2)(torch.ones(1, 2, 1, 4))
    with pytest.raises(ConfigError, match=r"leaves 1x1 pixels before 'blocks\.0'.*needs 2x2"):
        built("test_vit", "se", size=16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "simam"}, "gate must be one of se, eca, cbam, got 'simam'"),
        ({"gate": ["se"]}, r"gate must be one of se, eca, cbam, got \['se'\]"),
        ({"reduction": 0}, "reduction must be at least 1, got 0"),
        ({"gate": "cbam", "reduction": -1}, "reduction must be at least 1, got -1"),
        ({"gate": "eca", "kernel": 4}, "kernel must be odd and at least 1, got 4"),
        ({"gate": "eca", "kernel": -1}, "kernel must be odd and at least 1, got -1"),
        ({"gate": "cbam", "kernel": 2}, "kernel must be odd and at least 1, got 2"),
    ],
)
def test_wrong_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionAdapter(8, **options)


@pytest.mark.parametrize(
    "options", [{"kernel": 3}, {"gate": "eca", "reduction": 4}, {"gate": "cbam", "width": 1}]
)
def test_options_of_another_gate_are_refused(options: dict[str, Any]) -> None:
    config = BackboneConfig(name="test_resnet", pretrained=False)
    with pytest.raises(ConfigError, match=r"adapter\.options for 'attention'.*unexpected keyword"):
        build_network(config, None, 48, AdapterConfig(name="attention", options=options))
