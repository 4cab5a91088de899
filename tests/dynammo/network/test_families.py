"""Backbones of every family, as small as they come: positions, adapters, levels, sizes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dynammo.config import AdapterConfig, BackboneConfig, TrainConfig
from dynammo.errors import ConfigError
from dynammo.network.backbones import create_backbone, pretrained_weights
from dynammo.network.folding import cheapen, fold_adapters
from dynammo.network.network import Network, build_network, build_unmerged_network
from dynammo.network.stages import default_positions, default_stages
from dynammo.state import State
from dynammo.training.frozen_prefix import split_at_first_adapter
from dynammo.training.loop import train_adapter

# A member of each family: timm's architecture, what makes it small, the size of its images.
THIN = {"embed_dim": 24, "depth": 5, "num_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit": ("vit_tiny_patch16_224", {**THIN, "num_heads": 3, "mlp_ratio": 2.0}, 48),
    "registers": ("vit_small_patch14_reg4_dinov2", {**THIN, "init_values": 1.0}, 42),
    "deit": ("deit_tiny_distilled_patch16_224", THIN, 48),
    "eva": ("eva02_tiny_patch14_224", THIN, 42),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2]},
        48,
    ),
    "convnext": (
        "convnext_atto",
        {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "ls_init_value": 1.0},
        48,
    ),
    "mobilevit": ("mobilevit_xxs", {}, 64),
    "efficientformer": ("efficientformer_l1", {"embed_dims": [8, 8, 16, 16]}, 224),
    "resnet": ("test_resnet", {}, 48),
}
POSITIONS = {
    "vit": ["blocks.0", "blocks.1", "blocks.2", "blocks.3"],  # five blocks: 1, 1, 1 and 2
    "registers": ["blocks.0", "blocks.1", "blocks.2", "blocks.3"],
    "deit": ["blocks.0", "blocks.1", "blocks.2", "blocks.3"],
    "eva": ["blocks.0", "blocks.1", "blocks.2", "blocks.3"],
    "swin": ["layers.1", "layers.2", "layers.3"],
    "convnext": ["stages.1", "stages.2", "stages.3"],
    "mobilevit": ["stages.1", "stages.2", "stages.3", "stages.4"],
    "efficientformer": ["stages.1", "stages.2", "stages.3"],
    "resnet": ["layer1", "layer2", "layer3", "layer4"],
}
ADAPTERS_OF = {
    "vit": ["linear", "conv", "lora", "ssf", "bottleneck", "attention"],
    "registers": ["conv", "attention"],
    "deit": ["bottleneck"],
    "eva": ["linear", "lora"],
    "swin": ["linear", "conv", "ssf", "attention"],
    "convnext": ["lora", "ssf"],
    "resnet": ["lora", "ssf", "bottleneck", "attention"],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Names that lead to folders of the hub's form, each with a small member of a family."""
    names = {}
    for family, (architecture, arguments, _) in FAMILIES.items():
        folder = tmp_path_factory.mktemp(family)
        known: Any = timm.get_pretrained_cfg(architecture)
        keys = ("input_size", "fixed_input_size", "mean", "std", "classifier", "first_conv")
        described = {
            "architecture": architecture,
            "pretrained_cfg": {key: getattr(known, key) for key in keys},
            "model_args": arguments,
        }
        (folder / "config.json").write_text(json.dumps(described))
        names[family] = f"local-dir:{folder}"
    return names


def built(name: str, size: int, kind: str, **changes: Any) -> tuple[BackboneConfig, State, Network]:
    """A network with adapters that are not at their start."""
    config = BackboneConfig(name=name, pretrained=False, **changes)
    weights = pretrained_weights(config, seed=0)
    # Some norms start at zero, and what is before them would not be seen.
    weights |= {
        name: value + 0.5
        for name, value in weights.items()
        if value.is_floating_point() and not value.any()
    }
    network = build_network(config, weights, size, AdapterConfig(name=kind), seed=1)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        for parameter in network.adapter_parameters():
            nn.init.normal_(parameter, std=0.2)
    return config, weights, network


def noise(size: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest feature."""
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_default_positions_follow_from_a_rule(models: dict[str, str], family: str) -> None:
    assert default_positions(create_backbone(models[family])) == POSITIONS[family]


def test_the_quarters_of_a_deep_transformer() -> None:
    with torch.device("meta"):
        stages = default_stages(create_backbone("vit_tiny_patch16_224"))
    assert stages[1] == ["blocks.3", "blocks.4", "blocks.5"]
    assert [stage[0] for stage in stages] == ["blocks.0", "blocks.3", "blocks.6", "blocks.9"]


@pytest.mark.parametrize(
    ("family", "kind"), [(family, kind) for family, kinds in ADAPTERS_OF.items() for kind in kinds]
)
@torch.no_grad()
def test_adapters_in_every_family(models: dict[str, str], family: str, kind: str) -> None:
    size = FAMILIES[family][2]
    if (family, kind) == ("swin", "conv"):
        size = 96  # it needs maps of 3 x 3
    config, weights, network = built(models[family], size, kind)
    images = noise(size)
    features = network(images)
    assert apart(build_network(config, weights, size)(images), features) > 1e-3
    # Folded, or as cheap as it goes, it computes the same.
    folded = fold_adapters(network)
    if kind in ("lora", "ssf"):
        assert not folded.kept
        assert apart(build_network(config, folded.weights, size)(images), features) < 1e-5
    assert apart(cheapen(network)(images), features) < 1e-5
    # Two of them side by side are two networks.
    state = network.adapter_state()
    other = {name: value * 0.5 for name, value in state.items()}
    together = build_unmerged_network(
        config, weights, size, AdapterConfig(name=kind), [state, other]
    )
    network.load_adapter_state(other)
    expected = torch.cat([features, network.eval()(images)])
    assert apart(together.eval()(images), expected) < 1e-5


@pytest.mark.parametrize("family", ["mobilevit", "efficientformer"])
@torch.no_grad()
def test_networks_of_convolutions_and_attention(models: dict[str, str], family: str) -> None:
    size = FAMILIES[family][2]
    config, _, network = built(models[family], size, "lora", levels=3)
    images = noise(size, 1)
    folded = build_network(config, fold_adapters(network).weights, size)
    assert apart(folded(images), network(images)) < 1e-5


@pytest.mark.parametrize(
    ("family", "kind"), [("vit", "lora"), ("vit", "linear"), ("swin", "lora"), ("eva", "linear")]
)
def test_training_moves_the_adapter_and_nothing_else(
    models: dict[str, str], family: str, kind: str
) -> None:
    size = FAMILIES[family][2]
    _, _, network = built(models[family], size, kind)
    frozen, adapter = network.backbone_state(), network.adapter_state()
    with torch.no_grad():
        prefix, suffix = split_at_first_adapter(network)
        assert torch.equal(suffix(prefix(noise(size))), network(noise(size)))
    config = TrainConfig(epochs=1, batch_size=4, flip=False)
    trained = train_adapter(network, noise(size, 4), torch.tensor([0, 1, 0, 1]), 2, config, seed=0)
    assert all(not torch.equal(trained.adapter[name], adapter[name]) for name in adapter)
    after = network.backbone_state()
    assert after.keys() == frozen.keys()
    assert all(torch.equal(after[name], frozen[name]) for name in frozen)


@torch.no_grad()
def test_a_level_of_a_transformer_is_the_class_token_of_a_block(models: dict[str, str]) -> None:
    """By hand: behind the last normalisation, its positive and its negative part, at share 1/2."""
    config = BackboneConfig(name=models["vit"], pretrained=False, levels=2)
    weights = pretrained_weights(config, seed=0)
    network = build_network(config, weights, 48)
    given: Any = network.backbone
    tokens: list[Tensor] = []
    for block in given.blocks[-2:]:
        block.register_forward_hook(lambda _m, _i, output: tokens.append(given.norm(output)[:, 0]))
    features = network(noise(48))
    assert features.shape == (2, 2 * 2 * 24)
    for token, part in zip(tokens, features.split(48, dim=1), strict=True):
        both = torch.cat([token.relu(), (-token).relu()], dim=1)
        torch.testing.assert_close(part, 48 * both / both.sum(1, keepdim=True))


@torch.no_grad()
def test_without_a_class_token_that_is_read_the_patches_are_pooled(models: dict[str, str]) -> None:
    config = BackboneConfig(name=models["eva"], pretrained=False, levels=1)
    network = build_network(config, pretrained_weights(config, seed=0), 42)
    given: Any = network.backbone
    seen: list[Tensor] = []
    given.blocks[-1].register_forward_hook(lambda _m, _i, output: seen.append(given.norm(output)))
    features = network(noise(42))
    patches = seen[0][:, 1:]
    assert patches.shape == (2, 9, 24)
    both = torch.cat([patches.relu().mean(1), (-patches).relu().mean(1)], dim=1)
    torch.testing.assert_close(features, 48 * both / both.sum(1, keepdim=True))


def test_the_class_token_meets_the_neighbours_adapter_in_attention_alone(
    models: dict[str, str],
) -> None:
    _, _, network = built(models["registers"], 42, "conv")
    given: Any = network.backbone.get_submodule("blocks.0")
    x = torch.randn(1, 5 + 9, 24)
    residual = given.layout.residual(given.adapter, x)
    assert residual.shape == x.shape
    assert not residual[:, :5].any() and residual[:, 5:].any()


@pytest.mark.parametrize("family", ["vit", "eva", "swin"])
@torch.no_grad()
def test_positions_are_interpolated_for_the_size_of_the_images(
    models: dict[str, str], family: str
) -> None:
    size = FAMILIES[family][2]
    config = BackboneConfig(name=models[family], pretrained=False)
    weights = pretrained_weights(config, seed=0)
    network = build_network(config, weights, size)
    fitted = network.backbone_state()
    assert any(fitted[name].shape != weights[name].shape for name in fitted)
    # What was saved of a network for this size is taken as it is.
    again = build_network(config, fitted, size)
    assert torch.equal(again(noise(size)), network(noise(size)))


def test_a_size_that_the_patches_do_not_divide_is_refused(models: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"96 is no multiple .* of 14 pixels: take 98 or 84"):
        build_network(BackboneConfig(name=models["eva"], pretrained=False), None, 96)


def test_a_size_that_cannot_be_changed_is_refused_with_the_one_that_fits(
    models: dict[str, str],
) -> None:
    config = BackboneConfig(name=models["efficientformer"], pretrained=False)
    with pytest.raises(ConfigError, match=r"image\.size 64 does not suit .*, made for 224: "):
        build_network(config, None, 64)


def test_positions_choose_the_layers(models: dict[str, str]) -> None:
    """All layers of the kind in a module, or a layer itself."""
    chosen = ["blocks.3.attn", "blocks.4.mlp.fc1"]
    _, _, network = built(models["vit"], 48, "lora", positions=chosen)
    expected = ["blocks.3.attn.qkv", "blocks.3.attn.proj", "blocks.4.mlp.fc1"]
    assert network.positions == expected and network.units == chosen


def test_layers_that_are_not_called_are_left_out(models: dict[str, str]) -> None:
    """EVA-02's smaller members use the weight of qkv by itself: nothing can stand beside it."""
    _, _, network = built(models["eva"], 42, "lora", positions=["blocks.0"])
    names = ["blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"]
    assert network.positions == names


def test_modules_without_a_layer_of_the_kind_are_refused(models: dict[str, str]) -> None:
    config = BackboneConfig(name=models["vit"], pretrained=False, positions=["blocks.0.norm1"])
    with pytest.raises(ConfigError, match=r"no layer in blocks\.0\.norm1 takes the adapter lora"):
        build_network(config, None, 48, AdapterConfig(name="lora"))


def test_wrong_values_of_options_are_refused(models: dict[str, str]) -> None:
    config = BackboneConfig(name=models["vit"], pretrained=False)
    wrong = AdapterConfig(name="lora", options={"rank": 0})
    with pytest.raises(ConfigError, match=r"adapter\.options for 'lora': rank must be at least 1"):
        build_network(config, None, 48, wrong)
