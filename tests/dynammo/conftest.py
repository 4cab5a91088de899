"""A tiny real network for tests: timm's smallest ResNet family member at 64 pixels."""

import pytest
import torch

from dynammo.config import AdapterConfig, BackboneConfig
from dynammo.network.backbones import pretrained_weights
from dynammo.network.network import Network, build_network

SIZE = 64


@pytest.fixture(scope="session")
def backbone() -> BackboneConfig:
    return BackboneConfig(name="resnet10t", pretrained=False)


@pytest.fixture(scope="session")
def weights(backbone: BackboneConfig) -> dict[str, torch.Tensor]:
    return pretrained_weights(backbone, seed=0)


@pytest.fixture
def network(backbone: BackboneConfig, weights: dict[str, torch.Tensor]) -> Network:
    return build_network(backbone, weights, SIZE, AdapterConfig())


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
