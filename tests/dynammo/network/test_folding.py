import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dynammo.adapters.conv import ConvAdapter
from dynammo.adapters.linear import LinearAdapter
from dynammo.config import AdapterConfig, BackboneConfig
from dynammo.network.adapted import AdaptedStage
from dynammo.network.backbones import pretrained_weights
from dynammo.network.cost import count_macs, count_parameters
from dynammo.network.folding import cheapen, fold_adapters, why_not_foldable
from dynammo.network.network import Network, build_network

SIZE = 64
LINEAR = AdapterConfig(name="linear")
NO_BIAS = AdapterConfig(name="linear", options={"bias": False})


def backbone(name: str, *positions: str) -> BackboneConfig:
    return BackboneConfig(name=name, pretrained=False, positions=list(positions) or None)


def trained(config: BackboneConfig, adapter: AdapterConfig) -> tuple[Network, dict[str, Tensor]]:
    """A network whose adapters and BatchNorm statistics are anything but neutral."""
    weights = pretrained_weights(config, seed=0)
    torch.manual_seed(0)
    for name, value in weights.items():
        if name.endswith("running_mean"):
            value.normal_()
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
    network = build_network(config, weights, SIZE, adapter)
    for module in network.adapters().values():
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.1)
    return network, weights


@pytest.mark.parametrize(
    ("config", "adapter"),
    [
        (backbone("tf_efficientnet_lite0"), LINEAR),
        (backbone("efficientnet_b0"), LINEAR),
        (backbone("mobilenetv2_100"), LINEAR),
        (backbone("mobilenetv3_small_100"), LINEAR),
        (backbone("regnety_002"), NO_BIAS),
        (backbone("resnet18", "layer2", "layer3", "layer4"), NO_BIAS),
        # Average pools before the convolutions of the shortcuts.
        (backbone("resnet18d", "layer2", "layer3", "layer4"), NO_BIAS),
        (backbone("resnet26d", "layer2", "layer3", "layer4"), LINEAR),
    ],
    ids=lambda value: value.name,
)
def test_the_folded_backbone_computes_the_same(
    config: BackboneConfig, adapter: AdapterConfig
) -> None:
    network, weights = trained(config, adapter)
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    inside, kept = fold_adapters(network)
    assert kept == {}
    folded = build_network(config, inside, SIZE)
    bare = build_network(config, weights, SIZE)
    with torch.inference_mode():
        expected, answer, without = network(images), folded(images), bare(images)
    scale = expected.abs().max()
    assert (answer - expected).abs().max() < 1e-4 * scale
    assert (without - expected).abs().max() > 1e-2 * scale  # the adapters do something


def test_the_cost_is_the_bare_backbones() -> None:
    config = backbone("tf_efficientnet_lite0")
    network, weights = trained(config, LINEAR)
    folded = build_network(config, fold_adapters(network).weights, SIZE)
    bare = build_network(config, weights, SIZE)
    assert folded.state_dict().keys() == bare.state_dict().keys()
    assert count_parameters(folded) == count_parameters(bare) < count_parameters(network)
    assert count_macs(folded, SIZE) == count_macs(bare, SIZE) < count_macs(network, SIZE)


def test_folding_leaves_the_network_as_it_is() -> None:
    network, _ = trained(backbone("mobilenetv3_small_100"), LINEAR)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fold_adapters(network)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_cannot_be_folded_is_named() -> None:
    for config, adapter, reason in [
        (backbone("resnet18", "layer2"), AdapterConfig(), "layer2: ConvAdapter is not linear"),
        (backbone("resnet18", "layer2"), LINEAR, "layer2: its bias would meet the padding"),
        (backbone("resnet18", "layer1"), NO_BIAS, "layer1: its output goes into .*add"),
        # Its convolution has a group for each channel.
        (backbone("mobilenetv2_100", "blocks.0"), LINEAR, "blocks.0: its output goes into Conv2d"),
    ]:
        network = build_network(config, pretrained_weights(config, 0), SIZE, adapter)
        ((position, (problem,)),) = why_not_foldable(network).items()
        assert re.match(reason, f"{position}: {problem}")
        folded = fold_adapters(network)
        assert folded.kept == {position: [problem]}
        for name, value in folded.weights.items():
            assert torch.equal(value, network.backbone.state_dict()[inside(name, network)]), name


def inside(name: str, network: Network) -> str:
    """What a bare backbone's weight is called where its stage is behind an adapter."""
    for position in network.positions:
        name = re.sub(rf"^{position}\.", f"{position}.stage.", name)
    return name


def test_what_can_be_folded_goes_where_other_adapters_stay() -> None:
    config = backbone("resnet18")
    network, _ = trained(config, NO_BIAS)
    weights, kept = fold_adapters(network)
    assert list(kept) == ["layer1"]
    rest = build_network(backbone("resnet18", *kept), weights, SIZE, NO_BIAS)
    left = {k: v for k, v in network.adapter_state().items() if k.startswith("layer1.")}
    rest.load_adapter_state(left)
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    with torch.inference_mode():
        expected, answer = network(images), rest(images)
    assert (answer - expected).abs().max() < 1e-4 * expected.abs().max()
    assert count_macs(rest, SIZE) < count_macs(network, SIZE)


def test_a_bare_backbone_folds_to_itself() -> None:
    config = backbone("test_resnet")
    weights = pretrained_weights(config, 0)
    folded = fold_adapters(build_network(config, weights, SIZE))
    assert folded.kept == {}
    for name, value in folded.weights.items():
        assert torch.equal(value, weights[name]), name


class Stage(nn.Module):
    """One convolution that takes the stage's input, and maybe a BatchNorm behind it."""

    def __init__(self, channels: int, bias: bool, norm: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, 5, 1, bias=bias)
        self.norm = nn.BatchNorm2d(5) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.norm(self.convolution(x))
        return output


class Standardised(nn.Conv2d):
    """Uses other weights than it has."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.std(), self.bias)


def test_only_plain_convolutions_without_padding_take_a_bias() -> None:
    for convolution, reason in [
        (Standardised(3, 5, 1), "its output goes into Standardised"),
        (nn.Conv2d(3, 5, 1, padding=1), "its bias would meet the padding"),
    ]:
        network = Network(
            Backbone(nn.Sequential(convolution)),
            [0, 0, 0],
            [1, 1, 1],
            lambda _channels, _index, stage: AdaptedStage(LinearAdapter(3), stage),
            ["stage"],
            4,
        )
        (found,) = why_not_foldable(network)["stage"]
        assert reason in found


class Backbone(nn.Module):
    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.stage(x).mean((2, 3))
        return output


@settings(max_examples=25)
@given(channels=st.integers(3, 3), bias=st.booleans(), norm=st.booleans(), seed=st.integers(0, 99))
def test_where_the_constant_goes(channels: int, bias: bool, norm: bool, seed: int) -> None:
    torch.manual_seed(seed)
    stage = Stage(channels, bias, norm)
    if norm:
        nn.init.normal_(stage.norm.running_mean)
    adapter = LinearAdapter(channels)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    network = Network(
        Backbone(stage), [0, 0, 0], [1, 1, 1], lambda *_: AdaptedStage(adapter, stage), ["stage"], 4
    ).eval()
    if not bias and not norm:
        assert why_not_foldable(network) == {
            "stage": ["the convolution behind it has neither a bias nor a BatchNorm"]
        }
        return
    bare = Backbone(Stage(channels, bias, norm)).eval()
    bare.load_state_dict(fold_adapters(network).weights)
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(bare(x), network.backbone(x), atol=1e-5, rtol=1e-4)


class Pooled(nn.Module):
    """A pool before the convolution that takes the stage's input."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool, self.convolution = pool, nn.Conv2d(3, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.convolution(self.pool(x))
        return output


@pytest.mark.parametrize(
    ("pool", "foldable"),
    [
        (nn.AvgPool2d(2), True),
        (nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), True),
        (nn.AvgPool2d(3, stride=2, ceil_mode=True), True),
        (nn.AvgPool2d(3, padding=1), False),
        (nn.AvgPool2d(2, divisor_override=3), False),
        (nn.MaxPool2d(2), False),
    ],
)
def test_a_plain_average_pool_lets_the_adapter_through(pool: nn.Module, foldable: bool) -> None:
    torch.manual_seed(0)
    stage, adapter = Pooled(pool), LinearAdapter(3)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    network = Network(
        Backbone(stage), [0, 0, 0], [1, 1, 1], lambda *_: AdaptedStage(adapter, stage), ["stage"], 7
    ).eval()
    assert (not why_not_foldable(network)) == foldable
    if foldable:
        bare = Backbone(Pooled(pool)).eval()
        bare.load_state_dict(fold_adapters(network).weights)
        x = torch.randn(2, 3, 8, 8)  # not a multiple of every window: the last ones are cut off
        with torch.no_grad():
            torch.testing.assert_close(bare(x), network.backbone(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.7, 0.0, -0.7])
def test_a_conv_adapter_without_batch_norms_computes_the_same(alpha: float) -> None:
    torch.manual_seed(0)
    adapter = ConvAdapter(6, alpha=alpha)
    for norm in (adapter.down_norm, adapter.up_norm):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    adapter.eval()
    before = {name: value.clone() for name, value in adapter.state_dict().items()}
    fused = adapter.fused()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    x = torch.randn(2, 6, 5, 7)
    with torch.no_grad():
        expected, answer = adapter(x), fused(x)
    assert (expected.abs().max() > 0.1) == (alpha != 0)
    assert (answer - expected).abs().max() <= 1e-5 * expected.abs().max()
    for name, value in adapter.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("config", "adapter", "kept"),
    [
        (backbone("tf_efficientnet_lite0"), LINEAR, 0),
        (backbone("mobilenetv2_100", "blocks.3", "blocks.4"), AdapterConfig(), 2),
        (backbone("mobilenetv3_small_100", "blocks.2"), AdapterConfig(), 1),
        (backbone("regnety_002", "s2", "s3"), AdapterConfig(), 2),
        (backbone("resnet18", "layer1", "layer4"), AdapterConfig(), 2),
        # Some positions cannot be folded: there each becomes one convolution.
        (backbone("resnet18"), NO_BIAS, 0),
        (backbone("resnet18"), LINEAR, 0),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_cheapened_network_computes_the_same(
    config: BackboneConfig, adapter: AdapterConfig, kept: int
) -> None:
    network, _ = trained(config, adapter)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    cheap = cheapen(network)
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    with torch.inference_mode():
        expected, answer = network(images), cheap(images)
    assert (answer - expected).abs().max() < 1e-5 * expected.abs().max()
    assert len(cheap.adapters()) == kept
    for found in cheap.adapters().values():
        assert not any(isinstance(module, nn.BatchNorm2d) for module in found.modules())
    assert count_macs(cheap, SIZE) <= count_macs(network, SIZE)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
