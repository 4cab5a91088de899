"""ResNet-18 at 224 pixels with the paper's adapter: the design's table of costs."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dynammo.config import AdapterConfig, BackboneConfig
from dynammo.merging.average import average
from dynammo.network.backbones import create_backbone, pretrained_weights
from dynammo.network.cost import count_macs, count_parameters
from dynammo.network.network import build_network, build_unmerged_network

SIZE = 224
RESNET18 = BackboneConfig(name="resnet18", pretrained=False)
TINY = BackboneConfig(name="test_resnet", pretrained=False)
BARE, MERGED = 1_813_561_344, 2_612_772_864


@pytest.fixture
def no_arithmetic() -> Iterator[None]:
    """Tensors have shapes only, so that counting ten passes at 224 pixels takes no such time."""
    with FakeTensorMode():
        yield


def test_layers_by_hand() -> None:
    # 8 x 8 outputs of 4 filters of 3 * 3 * 3 weights; 2 x 2 of 4 * 1 * 1 * 5 (stride 4); 20 * 7.
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1, 4)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(20, 7)).eval()
    assert count_macs(network, 8) == 64 * 4 * 27 + 4 * 4 * 5 + 20 * 7
    # Weights and biases, and two numbers a channel of BatchNorm; its buffers do not count.
    assert count_parameters(network) == (4 * 27 + 4) + 2 * 4 + (4 * 5 + 5) + (20 * 7 + 7)


def test_frozen_parameters_count() -> None:
    assert count_parameters(nn.Linear(3, 2).requires_grad_(False)) == 3 * 2 + 2


@pytest.mark.usefixtures("no_arithmetic")
def test_bare_backbone() -> None:
    # By hand: the stem's 7 x 7 convolution; four 3 x 3 of layer1; then in each layer a 3 x 3 with
    # stride 2, which halves the work, three more, and a 1 x 1 shortcut (1/18 of a 3 x 3's work).
    full = 56 * 56 * 64 * 64 * 9
    by_hand = 112 * 112 * 64 * 3 * 49 + 4 * full + 3 * (full // 2 + 3 * full + full // 18)
    network = build_network(RESNET18, None, SIZE)
    assert by_hand == BARE
    assert count_macs(network, SIZE) == BARE
    assert pytest.approx(1.8136, abs=5e-5) == BARE / 1e9
    assert count_parameters(network) == 11_689_512 - 513_000  # torchvision's, without the head


@pytest.mark.usefixtures("no_arithmetic")
def test_merged() -> None:
    # An adapter on C channels at S x S pixels takes 9 C^2 (S - 2)^2 for the convolution and as
    # many for the transposed one (each input pixel meets each weight once).
    by_hand = sum(
        2 * 9 * c**2 * (s - 2) ** 2 for c, s in ((64, 56), (64, 56), (128, 28), (256, 14))
    )
    network = build_network(RESNET18, None, SIZE, AdapterConfig())
    assert BARE + by_hand == MERGED
    assert count_macs(network, SIZE) == MERGED
    assert pytest.approx(2.61, abs=0.005) == MERGED / 1e9
    # 18 C^2 + 6 C + 1 with all biases: the paper's 1.625 million.
    adapters = sum(p.numel() for p in network.adapter_parameters())
    assert adapters == sum(18 * c**2 + 6 * c + 1 for c in (64, 64, 128, 256)) == 1_625_092


@pytest.mark.usefixtures("no_arithmetic")
@pytest.mark.parametrize(("tasks", "gmacs"), [(1, 2.61), (4, 10.1), (7, 17.6), (10, 25.1)])
def test_unmerged(tasks: int, gmacs: float) -> None:
    adapter, weights = AdapterConfig(), create_backbone("resnet18").state_dict()
    states = [build_network(RESNET18, None, SIZE, adapter).adapter_state()] * tasks
    network = build_unmerged_network(RESNET18, weights, SIZE, adapter, states)
    # n passes and nothing else, but for the stem: before the first adapter all n see the same, so
    # its 7 x 7 convolution runs once.
    stem = 112 * 112 * 64 * 3 * 7 * 7
    assert count_macs(network, SIZE) == tasks * MERGED - (tasks - 1) * stem
    assert count_macs(network, SIZE) / 1e9 == pytest.approx(gmacs, abs=0.05)
    assert count_parameters(network) == 11_176_512 + tasks * 1_625_092


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_merging_any_number_of_adapters_costs_one(kind: str) -> None:
    adapter, weights = AdapterConfig(name=kind), pretrained_weights(TINY)
    network = build_network(TINY, weights, 64, adapter)
    alone = count_macs(network, 64), count_parameters(network)
    states = [build_network(TINY, weights, 64, adapter, s).adapter_state() for s in range(5)]
    network.load_adapter_state(average(states))
    assert (count_macs(network, 64), count_parameters(network)) == alone
    unmerged = build_unmerged_network(TINY, weights, 64, adapter, states)
    assert count_macs(unmerged, 64) > 3 * alone[0]


def test_counting_leaves_the_network_as_it_was() -> None:
    network = build_network(TINY, None, 64, AdapterConfig())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count_macs(network, 64)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_attention_is_counted() -> None:
    """ViT-Tiny at 32 pixels, patches of 16: 5 tokens of 192 numbers, 12 blocks of 3 heads."""
    network = build_network(BackboneConfig(name="vit_tiny_patch16_224", pretrained=False), None, 32)
    linear = 5 * 192 * 192 * (3 + 1 + 4 + 4)
    attention = 2 * 5 * 5 * 192  # queries by keys, and the result by values
    assert count_macs(network, 32) == 4 * 768 * 192 + 12 * (linear + attention)
