import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from dynammo.config import AdapterConfig, BackboneConfig
from dynammo.network.adapted import AdaptedStage
from dynammo.network.backbones import pretrained_weights
from dynammo.network.frozen_norms import without_frozen_norms
from dynammo.network.network import Network, build_network
from dynammo.training.frozen_prefix import split_at_first_adapter

SIZE = 64


def images(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def unsettled(network: Network) -> Network:
    """With statistics and gains that are anything but neutral."""
    torch.manual_seed(0)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.normal_(part.weight, mean=1, std=0.3)
            nn.init.normal_(part.bias, std=0.3)
    for parameter in network.adapter_parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def built(name: str, adapter: str) -> Network:
    config = BackboneConfig(name=name, pretrained=False)
    weights = pretrained_weights(config, 0)
    return unsettled(build_network(config, weights, SIZE, AdapterConfig(name=adapter), seed=1))


@pytest.mark.parametrize(
    ("name", "adapter", "left"),
    [
        ("tf_efficientnet_lite0", "linear", 0),
        ("resnet18", "conv", 8),  # the adapters' own: four times two
        ("mobilenetv3_small_100", "linear", 0),
        ("efficientnet_b0", "linear", 0),
        ("regnety_002", "conv", 8),
    ],
)
def test_features_and_gradients_are_the_same(name: str, adapter: str, left: int) -> None:
    network = built(name, adapter)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    fused = without_frozen_norms(network)
    assert norms(network) > 20
    assert norms(fused) == left
    with torch.no_grad():
        expected, answer = network(images()), fused(images())
    assert (answer - expected).abs().max() < 1e-5 * expected.abs().max()
    unchanged = {k: v for k, v in network.state_dict().items() if ".adapter." not in k}
    for key, value in unchanged.items():
        assert torch.equal(value, before[key]), key

    # In float64: ReLU's slope jumps at 0, where float32 rounding decides on which side a value is.
    network.double()
    fused = without_frozen_norms(network)
    network.train()

    def gradients(which: nn.Module) -> list[Tensor]:
        weighting = torch.linspace(-1, 1, network.feature_size)
        loss = (which(images()) * weighting).mean()
        return list(torch.autograd.grad(loss, network.adapter_parameters()))

    expected_ones = gradients(network)
    largest = max(float(gradient.abs().max()) for gradient in expected_ones)
    assert largest > 0
    for mine, other in zip(expected_ones, gradients(fused), strict=True):
        torch.testing.assert_close(other, mine, rtol=1e-6, atol=1e-9 * largest)


def test_the_adapters_are_the_network_s_own() -> None:
    network = built("test_resnet", "conv")
    fused = without_frozen_norms(network)
    for name, adapter in network.adapters().items():
        assert fused.adapters()[name] is adapter
    frozen = [p for p in fused.parameters() if p.requires_grad]
    assert {id(p) for p in frozen} == {id(p) for p in network.adapter_parameters()}
    assert not isinstance(split_at_first_adapter(fused)[0], nn.Identity)


class Small(nn.Module):
    """A stem, and a stage in which something keeps the BatchNorm out of the convolution."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem = nn.Conv2d(3, 4, 1)
        self.stage = nn.Identity()
        self.convolution, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(self.stem(x))
        if self.how == "branches":
            x = x if x.sum() > 0 else -x
        y = conv2d(x, self.convolution.weight.tanh()) if self.how == "computed" else None
        y = self.convolution(x) if y is None else y
        if self.how == "between":
            y = torch.relu(y)
        z = self.norm(y)
        if self.how == "elsewhere":
            z = z + y
        if self.how == "twice":
            z = self.norm(self.convolution(z))
        output: Tensor = z.mean((2, 3))
        return output


@pytest.mark.parametrize(
    ("how", "left"),
    [
        *(("plain", 0), ("branches", 1), ("computed", 1), ("between", 1)),
        *(("elsewhere", 1), ("twice", 1), ("batch", 1), ("trained", 1)),
    ],
)
def test_only_a_constant_norm_right_behind_a_constant_convolution_goes(how: str, left: int) -> None:
    backbone = Small(how).eval().requires_grad_(how == "trained")

    def wrap(_channels: int, _index: int, stage: nn.Module) -> nn.Module:
        return AdaptedStage(nn.Conv2d(4, 4, 1), stage)

    network = unsettled(Network(backbone, [0, 0, 0], [1, 1, 1], wrap, ["stage"], SIZE).eval())
    if how == "batch":
        backbone.norm.train()
    fused = without_frozen_norms(network)
    assert norms(fused) == left
    with torch.no_grad():
        torch.testing.assert_close(fused(images()), network(images()), rtol=1e-4, atol=1e-3)
