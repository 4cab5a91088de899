"""MLflow on a database of its own for each test, and a small model to serve."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dynammo.backbones import pretrained_weights
from dynammo.config import AdapterConfig, BackboneConfig
from dynammo.heads import new_head
from dynammo.inference import save_model
from dynammo.network import build_network


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: making one takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking(migrated_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MLflow records into this folder: mlflow.db and mlartifacts."""
    shutil.copy(migrated_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return tmp_path


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as `save_model` writes it; its answers mean nothing."""
    folder = tmp_path_factory.mktemp("model")
    backbone, adapter = BackboneConfig(name="test_resnet", pretrained=False), AdapterConfig()
    weights = pretrained_weights(backbone, seed=1)
    network = build_network(backbone, weights, 64, adapter, seed=1)
    classes = ["melanoma", "naevus", "keratosis"]
    save_model(
        folder,
        backbone=backbone,
        size=64,
        adapter=adapter,
        backbone_weights=weights,
        adapter_weights=network.adapter_state(),
        head=new_head(network.feature_size, len(classes), seed=1),
        classes=classes,
        provenance={"data": "d" * 64},
    )
    return folder
