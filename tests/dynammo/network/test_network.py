import pytest
import torch
from torch import Tensor

from dynammo.config import AdapterConfig, BackboneConfig
from dynammo.errors import CheckpointError, ConfigError
from dynammo.network.backbones import create_backbone
from dynammo.network.network import Network, build_network, build_unmerged_network
from dynammo.network.stages import default_positions
from tests.dynammo.conftest import SIZE


def shifted(network: Network, by: float) -> dict[str, Tensor]:
    """Another adapter for the same network: all floating-point weights moved."""
    return {k: v + by if v.is_floating_point() else v for k, v in network.adapter_state().items()}


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("mobilenetv2_050", ["blocks.3", "blocks.4", "blocks.5", "blocks.6"]),
        ("mobilenetv3_small_050", ["blocks.2", "blocks.3", "blocks.4", "blocks.5"]),
        ("efficientnet_b0", ["blocks.3", "blocks.4", "blocks.5", "blocks.6"]),
        ("tf_efficientnet_lite0", ["blocks.3", "blocks.4", "blocks.5", "blocks.6"]),
        ("regnetx_002", ["s1", "s2", "s3", "s4"]),
    ],
)
def test_default_positions(name: str, positions: list[str]) -> None:
    backbone = BackboneConfig(name=name, pretrained=False)
    assert default_positions(create_backbone(name)) == positions
    network = build_network(backbone, None, 96, AdapterConfig())
    assert network.positions == positions
    assert list(network.adapters()) == positions


def test_a_zero_adapter_changes_nothing(
    backbone: BackboneConfig, weights: dict[str, Tensor], images: Tensor
) -> None:
    bare = build_network(backbone, weights, SIZE)
    idle = build_network(backbone, weights, SIZE, AdapterConfig(options={"alpha": 0.0}))
    with torch.no_grad():
        assert torch.equal(bare(images), idle(images))


def test_images_are_normalised_as_the_backbone_expects(
    backbone: BackboneConfig, weights: dict[str, Tensor]
) -> None:
    network = build_network(backbone, weights, SIZE)
    grey = torch.full((1, 3, SIZE, SIZE), 128, dtype=torch.uint8)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    by_hand = ((128 / 255 - mean) / std).view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(network(grey), network.backbone(by_hand))


def test_adapter_state_round_trip(network: Network, images: Tensor) -> None:
    before = network(images)
    saved = network.adapter_state()
    network.load_adapter_state(shifted(network, 0.1))
    assert not torch.allclose(network(images), before)
    network.load_adapter_state(saved)
    assert torch.equal(network(images), before)


def test_an_adapter_that_does_not_fit_changes_nothing(network: Network) -> None:
    saved = network.adapter_state()
    wrong = shifted(network, 1.0)
    del wrong["layer4.alpha"]
    with pytest.raises(CheckpointError, match=r"layer4\.alpha is in one adapter only"):
        network.load_adapter_state(wrong)
    for name, value in network.adapter_state().items():
        assert torch.equal(value, saved[name])


def test_only_adapters_train(network: Network) -> None:
    network.train()
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trainable and all(".adapter." in name for name in trainable)
    training = {name for name, module in network.named_modules() if module.training}
    assert training and all(".adapter" in name for name in training)


def test_the_seed_sets_the_initial_adapter(
    backbone: BackboneConfig, weights: dict[str, Tensor]
) -> None:
    first, same, other = (
        build_network(backbone, weights, SIZE, AdapterConfig(), seed).adapter_state()[
            "layer1.down.weight"
        ]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_unmerged_network_equals_one_network_an_adapter(
    backbone: BackboneConfig, weights: dict[str, Tensor], images: Tensor, kind: str
) -> None:
    adapter = AdapterConfig(name=kind)
    single = build_network(backbone, weights, SIZE, adapter)
    states = [shifted(single, by) for by in (0.0, 0.05, -0.03)]
    together = build_unmerged_network(backbone, weights, SIZE, adapter, states)
    with torch.no_grad():
        parts = together(images).chunk(3)
        for state, part in zip(states, parts, strict=True):
            single.load_adapter_state(state)
            torch.testing.assert_close(part, single(images), rtol=1e-4, atol=1e-5)


def test_an_adapted_network_can_be_exported(network: Network, images: Tensor) -> None:
    program = torch.export.export(network, (images,), strict=False)
    torch.testing.assert_close(program.module()(images), network(images))


def test_wrong_positions_are_reported_together(backbone: BackboneConfig) -> None:
    wrong = backbone.model_copy(update={"positions": ["layer1", "layer9", "layer1"]})
    with pytest.raises(ConfigError) as caught:
        build_network(wrong, None, SIZE, AdapterConfig())
    assert "no module 'layer9'" in str(caught.value)
    assert "names a module twice" in str(caught.value)


def test_too_small_images_are_refused_with_the_way_out(backbone: BackboneConfig) -> None:
    with pytest.raises(ConfigError, match=r"leaves 2x2 pixels before 'layer4'.*enlarge the images"):
        build_network(backbone, None, 32, AdapterConfig())


def test_wrong_adapter_options_are_refused(backbone: BackboneConfig) -> None:
    with pytest.raises(ConfigError, match=r"adapter\.options for 'conv'.*'width'"):
        build_network(backbone, None, SIZE, AdapterConfig(options={"width": 3}))
