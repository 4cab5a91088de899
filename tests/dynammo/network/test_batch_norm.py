"""BatchNorm moved towards other images."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynammo.config import BackboneConfig
from dynammo.errors import ConfigError, DynammoError
from dynammo.network.backbones import pretrained_weights
from dynammo.network.batch_norm import check_batch_norms, renormalise
from dynammo.network.network import Network, build_network

TINY = BackboneConfig(name="test_resnet", pretrained=False)
SIZE = 32


class OneNorm(nn.Module):
    """A BatchNorm of mean 0.5 and variance 2, and one that no image meets."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.unused = nn.BatchNorm2d(3), nn.BatchNorm2d(2)
        self.norm.get_buffer("running_mean").fill_(0.5)
        self.norm.get_buffer("running_var").fill_(2.0)
        self.unused.get_buffer("running_var").fill_(3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).mean((2, 3))


def one_norm() -> Network:
    """Pixels 0 and 255 become -1 and 1."""
    return Network(OneNorm().requires_grad_(False).eval(), (0.5,) * 3, (0.5,) * 3, form=4)


def noise(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_mean_and_variance_by_hand(share: float) -> None:
    # Half of the pixels -1 and half of them 1: mean 0, and of 32 a variance of 32 / 31.
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    state = renormalise(one_norm(), images, share, seed=0)
    torch.testing.assert_close(state["norm.running_mean"], torch.full((3,), 0.5 * (1 - share)))
    expected = torch.full((3,), 2 * (1 - share) + 32 / 31 * share)
    torch.testing.assert_close(state["norm.running_var"], expected)


def test_a_layer_receives_what_those_before_it_normalise_by_the_batch() -> None:
    images = noise(40)
    weights = pretrained_weights(TINY, seed=1)
    state = renormalise(build_network(TINY, weights, SIZE), images, 1.0, seed=0)
    network = build_network(TINY, weights, SIZE)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum, norm.training = 1.0, True  # torch: the one batch's alone
    with torch.no_grad():
        network(images)
    for name, value in network.backbone.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(state[name], value)


@cache
def moved(share: float) -> dict[str, Tensor]:
    """The tiny network's state, moved towards eight images of noise."""
    network = build_network(TINY, pretrained_weights(TINY, seed=1), SIZE)
    return renormalise(network, noise(8), share, seed=0)


@given(share=st.floats(0, 1))
def test_only_means_and_variances_change_and_by_the_share(share: float) -> None:
    weights = pretrained_weights(TINY, seed=1)
    none, some, whole = moved(0), moved(share), moved(1)
    for name, value in some.items():
        running = name.endswith(("running_mean", "running_var"))
        if name.endswith("num_batches_tracked"):
            continue
        assert torch.equal(none[name], weights[name])
        expected = torch.lerp(none[name], whole[name], share) if running else weights[name]
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_the_network_is_left_in_eval_mode_with_what_is_returned() -> None:
    network = build_network(TINY, pretrained_weights(TINY, seed=1), SIZE)
    images = noise(70)  # more than a batch
    state = renormalise(network, images, 0.5, seed=0)
    assert not any(module.training for module in network.modules())
    again = build_network(TINY, state, SIZE)
    with torch.no_grad():
        features = network(images[:3])
        assert torch.equal(again(images[:3]), features)
        network(images[3:])
        assert torch.equal(network(images[:3]), features)


def test_the_same_seed_gives_the_same() -> None:
    weights = pretrained_weights(TINY, seed=1)

    def mean(seed: int) -> Tensor:
        network = build_network(TINY, weights, SIZE)
        return renormalise(network, noise(130), 1.0, seed)["layer4.0.bn1.running_var"]

    assert torch.equal(mean(0), mean(0))
    assert not torch.equal(mean(0), mean(1))  # other batches


def test_a_layer_that_no_image_meets_stays_as_it_was() -> None:
    network = one_norm()
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    state = renormalise(network, noise(4), 1.0, seed=0)
    assert not torch.equal(state["norm.running_mean"], before["norm.running_mean"])
    for name in ("unused.running_mean", "unused.running_var"):
        assert torch.equal(state[name], before[name])


def test_one_image_is_too_few() -> None:
    with pytest.raises(DynammoError, match="at least 2 images, got 1"):
        renormalise(one_norm(), noise(1), 0.1, seed=0)


def test_a_backbone_without_batch_norm_is_refused() -> None:
    config = BackboneConfig(name="test_convnext", pretrained=False)
    network = build_network(config, None, SIZE)
    with pytest.raises(ConfigError, match="this backbone has no BatchNorm; set it to 0"):
        check_batch_norms(network)
    with pytest.raises(ConfigError, match="no BatchNorm"):
        renormalise(network, noise(4), 0.1, seed=0)
