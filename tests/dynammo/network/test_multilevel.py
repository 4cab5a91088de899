"""Features of several levels of resolution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynammo.config import AdapterConfig, BackboneConfig
from dynammo.errors import ConfigError
from dynammo.network.backbones import pretrained_weights
from dynammo.network.cost import count_macs, count_parameters
from dynammo.network.folding import fold_adapters
from dynammo.network.frozen_norms import without_frozen_norms
from dynammo.network.multilevel import check_levels, level_features, signed_levels
from dynammo.network.network import Network, build_network, build_unmerged_network
from dynammo.training.frozen_prefix import split_at_first_adapter
from tests.dynammo.conftest import SIZE

LINEAR = AdapterConfig(name="linear", options={"bias": False})


def with_levels(name: str, levels: int, *positions: str) -> BackboneConfig:
    return BackboneConfig(
        name=name, pretrained=False, levels=levels, positions=list(positions) or None
    )


def adapted(config: BackboneConfig, seed: int = 0) -> Network:
    """With adapters that do something."""
    network = build_network(config, pretrained_weights(config, seed=1), SIZE, LINEAR)
    torch.manual_seed(seed)
    for parameter in network.adapter_parameters():
        nn.init.normal_(parameter, std=0.05)
    return network


def test_positive_and_negative_parts_by_hand() -> None:
    # Level 1, one channel of 2 pixels, 3 and -1, whose parts have means 1.5 and 0.5. Level 2, two
    # channels of 1 pixel, 4 and -12: [4, 0, 0, 12]. As shares of their sums, times 6 features / 2.
    maps = torch.tensor([[[[3.0, -1.0]]]]), torch.tensor([[[[4.0]], [[-12.0]]]])
    features = level_features(maps, [True, True])
    torch.testing.assert_close(features, torch.tensor([[2.25, 0.75, 0.75, 0.0, 0.0, 2.25]]))
    assert level_features(maps[1:], [True]).tolist() == [[1.0, 0.0, 0.0, 3.0]]


@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_features_are_not_negative_and_do_not_depend_on_a_levels_scale(
    seed: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    fine, coarse = (torch.randn(3, 4, s, s, generator=generator) for s in (4, 2))
    features = level_features([fine, coarse], [True, True])
    assert features.shape == (3, 16) and bool((features >= 0).all())
    for level in features.split(8, dim=1):
        torch.testing.assert_close(level.mean(1), torch.ones(3))
    torch.testing.assert_close(level_features([scale * fine, coarse], [True, True]), features)


def test_an_empty_map_gives_zeros() -> None:
    assert level_features([torch.zeros(2, 3, 1, 1)], [True]).eq(0).all()


@pytest.mark.parametrize(
    ("name", "channels", "parts"),
    [("tf_efficientnet_lite0", (40, 112, 320), 2), ("resnet10t", (128, 256, 512), 1)],
)
def test_the_last_levels_of_a_network(
    name: str, channels: tuple[int, ...], parts: int, images: Tensor
) -> None:
    config = with_levels(name, 3)
    network = build_network(config, pretrained_weights(config, seed=1), SIZE)
    assert network.feature_size == parts * sum(channels)  # behind ReLUs none is negative
    assert network(images[:2]).shape == (2, network.feature_size)
    plain = config.model_copy(update={"levels": None})
    # Of EfficientNet the last convolution, in front of the classifier, is left out.
    whole = build_network(plain, pretrained_weights(config, seed=1), SIZE)
    last = 320 * 1280 if "efficientnet" in name else 0
    norm = 2 * 1280 if last else 0
    assert count_macs(network, SIZE) == count_macs(whole, SIZE) - last * (SIZE // 32) ** 2
    assert count_parameters(network) == count_parameters(whole) - last - norm


@pytest.mark.parametrize(
    "config",
    [with_levels("tf_efficientnet_lite0", 3), with_levels("resnet10t", 2, "layer3", "layer4")],
    ids=lambda config: config.name,
)
def test_folded_cut_or_without_norms_it_computes_the_same(
    config: BackboneConfig, images: Tensor
) -> None:
    network = adapted(config)
    bare = build_network(config, pretrained_weights(config, seed=1), SIZE)
    with torch.no_grad():
        expected = network(images)
        assert (bare(images) - expected).abs().max() > 1e-2 * expected.abs().max()
        folded = build_network(config, fold_adapters(network).weights, SIZE)
        torch.testing.assert_close(folded(images), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(
            without_frozen_norms(network)(images), expected, rtol=1e-3, atol=1e-4
        )
        prefix, suffix = split_at_first_adapter(network)
        assert not isinstance(prefix, nn.Identity)  # a level right before the first adapter
        assert torch.equal(suffix(prefix(images)), expected)


@pytest.mark.parametrize("first", ["layer1", "layer3"])
def test_unmerged_a_level_before_the_first_adapter_is_every_adapters(
    first: str, images: Tensor
) -> None:
    names = ["layer1", "layer2", "layer3", "layer4"]
    config = with_levels("resnet10t", 3, *names[names.index(first) :])
    weights = pretrained_weights(config, seed=1)
    singles = [adapted(config, seed) for seed in (0, 1, 2)]
    states = [single.adapter_state() for single in singles]
    together = build_unmerged_network(config, weights, SIZE, LINEAR, states)
    with torch.no_grad():
        parts = together(images).chunk(3)
        for single, part in zip(singles, parts, strict=True):
            torch.testing.assert_close(part, single(images), rtol=1e-4, atol=1e-5)


def test_levels_that_a_backbone_does_not_have() -> None:
    with pytest.raises(ConfigError, match=r"backbone\.levels is 6, but this backbone has 5"):
        build_network(with_levels("resnet10t", 6), None, SIZE)

    with pytest.raises(ConfigError, match="Flatten does not give its feature maps"):
        check_levels(nn.Flatten(), 1)


def test_levels_without_negative_values_have_no_negative_part() -> None:
    # Shares of 1 and 3 in the first, [2, 0, 0, 6] of 8 in the second, times 6 features / 2.
    maps = torch.tensor([[[[1.0]], [[3.0]]]]), torch.tensor([[[[2.0]], [[-6.0]]]])
    signed = signed_levels(maps)
    assert signed == [False, True]
    features = level_features(maps, signed)
    torch.testing.assert_close(features, torch.tensor([[0.75, 2.25, 0.75, 0.0, 0.0, 2.25]]))
