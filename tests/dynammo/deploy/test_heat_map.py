from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from dynammo.config import BackboneConfig
from dynammo.deploy.heat_map import explained, heat_maps
from dynammo.deploy.predictor import Classifier, Predictor
from dynammo.errors import ConfigError
from dynammo.heads.discriminant import linear_discriminant
from dynammo.heads.linear import new_head
from dynammo.network.backbones import pretrained_weights
from dynammo.network.features import extract_features
from dynammo.network.layouts import intermediate_maps
from dynammo.network.multilevel import level_features
from dynammo.network.network import Network, build_network

SIZE, SQUARE = 96, 32


def network_of(config: BackboneConfig, size: int) -> Network:
    return build_network(config, pretrained_weights(config, seed=1), size)


def scenes(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Grey noise with a red (class 0) or a green square (1) somewhere; where it is, as a mask."""
    generator = np.random.default_rng(0)
    images = generator.integers(90, 160, (count, 3, SIZE, SIZE), dtype=np.uint8)
    masks = np.zeros((count, SIZE, SIZE), dtype=bool)
    classes = np.arange(count) % 2
    for image, mask, of in zip(images, masks, classes, strict=True):
        y, x = generator.integers(0, SIZE - SQUARE, 2)
        mask[y : y + SQUARE, x : x + SQUARE] = True
        image[:, mask] = 40
        image[of, mask] = 220
    return torch.from_numpy(images), torch.from_numpy(classes), torch.from_numpy(masks)


def test_the_map_is_where_the_class_is_seen() -> None:
    network = network_of(BackboneConfig(name="tf_efficientnet_lite0", levels=3), SIZE)
    images, classes, masks = scenes(24)
    features = extract_features(network, images).double()
    means = torch.stack([features[classes == c].mean(0) for c in (0, 1)])
    spread = (features - means[classes]).square().mean() * torch.eye(features.shape[1]).double()
    classifier = Classifier(network, linear_discriminant(means, spread))
    maps = heat_maps(classifier, images, classes)
    assert maps.shape == (24, SIZE, SIZE) and not maps.requires_grad
    for heat, mask in zip(maps, masks, strict=True):
        assert heat[mask].mean() > 0 > heat[~mask].mean()
    # Shares of a whole: what is for the class here is against it there.
    assert maps.mean((1, 2)).abs().max() < 0.01 * maps.abs().mean()
    other = heat_maps(classifier, images, 1 - classes)
    torch.testing.assert_close(other, -maps, rtol=1e-3, atol=1e-5)


def test_a_map_is_what_the_log_odds_lose_when_nothing_is_seen_there() -> None:
    network = network_of(BackboneConfig(name="test_resnet", pretrained=False, levels=1), 64)
    classifier = Classifier(network, new_head(network.feature_size, 3, seed=2))
    image = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    assert network.signed is not None
    with torch.no_grad():
        (feature_map,) = intermediate_maps(network.backbone, network.normalised(image), 1)

        def log_odds(x: Tensor) -> float:
            shares = classifier.logits(level_features([x], network.signed or ())).softmax(1)[0]
            return float((shares[1] / (1 - shares[1])).log())

        height, width = feature_map.shape[-2:]
        lost = torch.zeros(1, 1, height, width)
        for y in range(height):
            for x in range(width):
                dimmed = feature_map.clone()
                dimmed[..., y, x] *= 0.9
                lost[..., y, x] = 10 * (log_odds(feature_map) - log_odds(dimmed))
    expected = functional.interpolate(lost * height * width / 100, (64, 64), mode="bilinear")
    found = heat_maps(classifier, image, torch.tensor([1]))
    assert height * width > 1
    torch.testing.assert_close(
        found, expected[0], rtol=0.05, atol=0.02 * float(expected.abs().max())
    )


def test_a_drawn_map_is_red_for_the_class_and_blue_against_it(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the strongest: half of the colour, and half of the grey of the picture."""
    predictor = Predictor(model_folder)
    heat = torch.zeros(1, predictor.form.size, predictor.form.size)
    heat[0, 0, 0], heat[0, 0, 1] = -2, 1
    monkeypatch.setattr("dynammo.deploy.heat_map.heat_maps", lambda *_: heat)
    picture = np.full((predictor.form.size, predictor.form.size, 3), (30, 60, 90), dtype=np.uint8)
    drawn = np.asarray(Image.open(BytesIO(explained(predictor, picture, predictor.classes[0]))))
    assert drawn[0, 0].tolist() == [0, 0, 255]
    assert drawn[0, 1].tolist() == [158, 30, 30]
    assert (drawn[1:] == 60).all()


def test_a_network_that_reads_a_class_token_has_no_map() -> None:
    config = BackboneConfig(name="test_vit", pretrained=False, levels=None)
    network = network_of(config, 160)
    classifier = Classifier(network, new_head(network.feature_size, 2, seed=0))
    with pytest.raises(ConfigError, match="no heat map"):
        heat_maps(classifier, torch.zeros(1, 3, 160, 160), torch.tensor([0]))
