import pytest
import torch
from torch import Tensor

from dynammo.network.features import (
    augmented_views,
    brightened,
    count_views,
    extract_features,
    views_of,
)
from dynammo.network.network import Network


@pytest.mark.parametrize("batch_size", [1, 4, 6, 100])
def test_features_are_the_networks_own_whatever_the_batch(
    network: Network, images: Tensor, batch_size: int
) -> None:
    with torch.no_grad():
        expected = network.eval()(images)
    features = extract_features(network, images, batch_size)
    assert features.shape == (6, network.feature_size)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_a_network_in_training_is_put_into_eval_mode(network: Network, images: Tensor) -> None:
    expected = extract_features(network, images)
    before = network.adapter_state()
    network.train()
    assert torch.equal(extract_features(network, images), expected)
    for name, value in network.adapter_state().items():
        assert torch.equal(value, before[name]), name  # BatchNorm statistics too


def test_features_are_plain_float32_on_the_cpu(network: Network, images: Tensor) -> None:
    features = extract_features(network, images)
    assert (features.dtype, features.device.type) == (torch.float32, "cpu")
    assert not features.requires_grad


def test_progress(network: Network, images: Tensor) -> None:
    seen: list[tuple[int, int]] = []
    extract_features(network, images, 4, lambda done, total: seen.append((done, total)))
    assert seen == [(4, 6), (6, 6)]


def test_views(network: Network, images: Tensor) -> None:
    plain, mirrored = augmented_views(network, images, flip=True)
    assert torch.equal(plain, extract_features(network, images))
    # Left and right are swapped, not top and bottom: columns in reverse order.
    by_hand = images[:, :, :, list(range(images.shape[3] - 1, -1, -1))]
    assert torch.equal(mirrored, extract_features(network, by_hand))
    assert not torch.allclose(plain, mirrored)
    assert torch.equal(augmented_views(network, images, flip=False), plain.unsqueeze(0))


def test_turned_views_are_the_symmetries_of_the_square() -> None:
    image = torch.arange(9).view(1, 1, 3, 3)
    views = views_of(image, flip=True, turns=True)
    assert [torch.equal(views[i], v) for i, v in enumerate(views_of(image, flip=True))] == [
        True
    ] * 2
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8
    assert torch.equal(views_of(image, flip=False, turns=True)[1], image.rot90(1, (2, 3)))
    # Turning any of them by a quarter gives another of them.
    assert all(any(torch.equal(v.rot90(1, (2, 3)), w) for w in views) for v in views)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", [False, True])
def test_views_are_counted(flip: bool, turns: bool) -> None:
    assert len(views_of(torch.zeros(1, 3, 4, 4), flip, turns)) == count_views(flip, turns)


def test_brightness_is_one_factor_an_image() -> None:
    images = torch.full((400, 3, 2, 2), 100, dtype=torch.uint8)
    lit = brightened(images, 0.3, torch.Generator().manual_seed(0))
    factors = lit[:, 0, 0, 0] / 100
    torch.testing.assert_close(lit, images * factors.view(-1, 1, 1, 1))
    # U(0.7, 1.3): the mean of 400 has a standard error of 0.6 / sqrt(12 * 400) = 0.009.
    assert factors.min() >= 0.7 and factors.max() <= 1.3
    assert factors.mean() == pytest.approx(1, abs=0.03)
    assert factors.max() - factors.min() > 0.55
    white = brightened(images + 155, 0.3, torch.Generator().manual_seed(0))
    assert white.max() == 255


def test_views_can_be_trained_on(network: Network, images: Tensor) -> None:
    weight = torch.ones(network.feature_size, requires_grad=True)
    (augmented_views(network, images, flip=False)[0] @ weight).sum().backward()
    assert weight.grad is not None
