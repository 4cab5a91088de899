"""The pictures that a learner's memory holds, for who asks a model why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynammo.deploy.manifest import parse_manifest
from dynammo.errors import ConfigError
from dynammo.learner.folder import LearnerFolder
from dynammo.learner.settings import DEPLOYED
from tasks.support.images import remembered
from tasks.support.stage import known_classes
from tasks.support.version import config_of, context_in, read_version


def kept_pictures(folder: LearnerFolder, model: Path) -> tuple[NDArray[np.uint8], list[str]]:
    """The exemplars (M, S, S, 3) that the version of a published model remembers, and their
    classes.

    Args:
        folder: of the learner.
        model: folder of the model, one of the learner's.

    Raises:
        ConfigError: the model is not of this learner, or no picture is kept.
        LearnerError: the learner no longer has the version.
    """
    made_of = parse_manifest((model / "model.json").read_bytes()).provenance
    said = made_of.get("learner", {})
    number = said.get("version") if isinstance(said, dict) else None
    stranger = ConfigError([f"{model} holds no model of the learner {folder.name}"])
    if not folder.exists or not isinstance(number, int):
        raise stranger
    version = read_version(folder, number)
    own = version["stage"]["methods"][DEPLOYED]
    if made_of.get("parents", {}).get("head") != own["heads"][0]["sha256"]:
        raise stranger
    adapted = version["stage"]["adapted"]
    ref = own["exemplars"] or (adapted["exemplars"] if adapted else None)
    memory = remembered(ref, context_in(folder, config_of(version))) if ref else None
    if memory is None or not len(memory[0]):
        raise ConfigError([f"version {number} of {folder.name} keeps no picture"])
    images, owner = memory
    classes = known_classes(version["stage"])
    return images.permute(0, 2, 3, 1).numpy(), [classes[index] for index in owner.tolist()]
