"""A learner's configuration: what it begins with, and what may change from batch to batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynammo.checks import check_parts
from dynammo.config import Config, load_config
from dynammo.config.reading import layered
from dynammo.errors import ConfigError
from dynammo.methods import METHODS

DEPLOYED = "merged"  # the method whose model is published, and which the gate is about
# The rest is what the learner is.
MAY_CHANGE = (
    "device",
    "train",
    "retention",
    "clinical",  # images without a column say nothing of it
    "classes",
    "gate",
    "tracking",
    "data.repeats",
    "data.test_share",
    "memory.size",  # of a learner that comes to know more classes than its memory has places
    "memory.per_class",
)


def first_settings(name: str, params: str | None, overrides: Mapping[str, Any]) -> Config:
    """The configuration of a new learner.

    Args:
        name: of the learner.
        params: YAML file; none means the defaults.
        overrides: settings that win over the file.

    Raises:
        ConfigError: it is no configuration of a learner.
    """
    fixed = {"data.name": name}
    config = load_config(params, layered(overrides, fixed))
    able = _revisable()
    if "methods" not in config.model_fields_set:
        config = load_config(params, layered(overrides, fixed, {"methods": able}))
    if DEPLOYED not in config.methods:
        raise ConfigError([f"methods: a learner needs {DEPLOYED}, whose model is deployed"])
    if config.retention.test == "features" and set(config.methods) - set(able):
        raise ConfigError([f"retention.test features is for {' and '.join(able)} alone"])
    check_parts(config)
    return config


def next_settings(config: Config, overrides: Mapping[str, Any]) -> Config:
    """The configuration for a further batch.

    Args:
        config: what the learner has.
        overrides: settings that win over it. What cannot change may be named with its own value.

    Raises:
        ConfigError: one of them cannot change, or is none.
    """
    was, changes = layered(config.model_dump(mode="json")), layered(overrides)
    for key, value in changes.items():
        may = any(key == own or key.startswith(f"{own}.") for own in MAY_CHANGE)
        if not may and was.get(key) != value:
            raise ConfigError(
                [f"{key} cannot change after the first batch; these can: {', '.join(MAY_CHANGE)}"]
            )
    return load_config(None, layered(was, changes))


def check_again(config: Config, again: list[str]) -> None:
    """Find out whether all methods can learn further images of classes they know.

    Raises:
        ConfigError: one cannot.
    """
    others = [name for name in config.methods if name not in _revisable()]
    if again and others:
        raise ConfigError(
            [
                f"methods: {', '.join(others)} cannot learn further images of known classes "
                f"({', '.join(again[:3])}); {' and '.join(_revisable())} can"
            ]
        )


def _revisable() -> list[str]:
    return [name for name, method in METHODS.items() if method.revisable]
