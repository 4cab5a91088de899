"""Read the configuration from `params.yaml`, changed by overrides.

Overrides are `train.epochs=3` on the command line, `{"train.epochs": 3}` in a deployment's
parameters. Unknown keys, wrong values and contradictions are refused together, in one
`ConfigError`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from dynammo.adapters import ADAPTERS
from dynammo.config.documents import parse_yaml, read_yaml
from dynammo.config.parents import read_parents
from dynammo.config.sections import Config
from dynammo.data import DATA_SOURCES
from dynammo.errors import ConfigError, shown
from dynammo.heads import HEAD_RULES
from dynammo.merging import MERGE_RULES
from dynammo.methods import METHODS


def load_config(
    params: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Config:
    """Read a YAML file (none: the defaults) and apply overrides.

    Args:
        params: YAML file with the sections of `Config`.
        overrides: dotted keys (`{"train.epochs": 3}`) or nested sections; they win over the file.

    Raises:
        ConfigError: the file is missing or not YAML, or any key or value is wrong; all problems at
            once. Or an installed package claims the name of a part that is taken.
    """
    for registry in (ADAPTERS, DATA_SOURCES, HEAD_RULES, MERGE_RULES, METHODS):
        registry.check()
    values: dict[str, Any] = {}
    if params is not None:
        values = read_yaml(params) or {}
        if not isinstance(values, dict):
            raise ConfigError(
                [f"{params} must hold sections like 'train:', got {type(values).__name__}"]
            )
    # What these leave out has a default only where the file leaves out the whole section.
    default = Config()
    keeps_none = (overrides or {}).get("preset", values.get("preset")) == "no_images"
    for section in ("scenario",) if keeps_none else ("scenario", "memory"):
        values.setdefault(section, getattr(default, section).model_dump())
    # Copied: dotted keys are written into the nested values, which are the caller's.
    flat = copy.deepcopy(dict(_flatten(overrides or {})))
    for key, other in _EXCLUSIVE:
        # Choosing one of two exclusive keys drops the file's or the default choice of the other.
        if flat.get(key) is not None and other not in flat:
            _section_of(values, other).pop(other.rpartition(".")[2], None)
    for key, value in flat.items():
        _section_of(values, key)[key.rpartition(".")[2]] = value
    problems = _read_files(values)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError([*problems, *problems_of(error, Config)]) from None
    if problems:
        raise ConfigError(problems)
    return config


def _read_files(values: dict[str, Any]) -> list[str]:
    """Put what a file says in the place of its name; what is wrong with it, a line each."""
    classes = values.get("classes")
    if not isinstance(classes, dict) or isinstance(classes.get("parents"), Mapping | None):
        return []  # nothing, or as it was read before
    found, problems = None, list[str]()
    try:
        found = read_parents(classes["parents"]).model_dump()
    except ConfigError as error:
        problems = error.problems
    values["classes"] = {**classes, "parents": found}
    return problems


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """`["train.epochs=3", "data.name=skin8"]` -> dotted keys and YAML values.

    Raises:
        ConfigError: an assignment without "=", or a value that is not YAML.
    """
    overrides: dict[str, Any] = {}
    problems = []
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            problems.append(f"override {shown(assignment)} is not key=value")
            continue
        try:
            overrides[key.strip()] = parse_yaml(value)
        except yaml.YAMLError:
            problems.append(f"override {shown(assignment)}: {shown(value)} is not a YAML value")
    if problems:
        raise ConfigError(problems)
    return overrides


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides upon overrides, as dotted keys: what comes later wins.

    It also wins over the other of two exclusive keys: a later `memory.per_class` drops an earlier
    `memory.size`.
    """
    flat: dict[str, Any] = {}
    for layer in layers:
        new = dict(_flatten(layer))
        for key, other in _EXCLUSIVE:
            if new.get(key) is not None and other not in new:
                flat.pop(other, None)
        flat |= new
    return flat


_PAIRS = [("memory.size", "memory.per_class"), ("scenario.tasks", "scenario.classes_per_task")]
_EXCLUSIVE = _PAIRS + [(second, first) for first, second in _PAIRS]


def _flatten(overrides: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested sections as dotted keys. What is called `options` is a value, not a section, and so is
    what a file says.
    """
    for key, value in overrides.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and not dotted.endswith((".options", "classes.parents")):
            yield from _flatten(value, f"{dotted}.")
        else:
            yield dotted, value


def _section_of(values: dict[str, Any], dotted: str) -> dict[str, Any]:
    """The innermost section that a dotted key lives in, made where it is missing."""
    for part in dotted.split(".")[:-1]:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    return values


def problems_of(error: ValidationError, document: type[BaseModel]) -> list[str]:
    """Pydantic's findings about a document as one readable line each."""
    lines = []
    for item in error.errors():
        where = ".".join(
            str(part)
            for part in item["loc"]
            if part not in ("literal['seed','sorted']", "list[str]")
        )
        if item["type"] == "extra_forbidden":
            section = _section(item["loc"][:-1], document)
            lines.append(f"{where}: unknown key; known: {', '.join(section.model_fields)}")
        elif item["type"] == "value_error":
            text = str(item["ctx"]["error"])
            lines.extend([f"{where}: {text}"] if where and "." in where else text.split("\n"))
        elif item["type"] == "missing":
            lines.append(f"{where}: is missing")
        else:
            lines.append(f"{where}: {item['msg']} (got {shown(item['input'])})")
    return lines


def _section(location: tuple[int | str, ...], document: type[BaseModel]) -> type[BaseModel]:
    """The innermost section at a location; also within a list of sections."""
    section = document
    for part in location:
        if str(part) not in section.model_fields:  # the place in a list
            continue
        annotation = section.model_fields[str(part)].annotation
        within = [
            own
            for own in (annotation, *get_args(annotation))
            if isinstance(own, type) and issubclass(own, BaseModel)
        ]
        if not within:
            break
        section = within[0]
    return section
