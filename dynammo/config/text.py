"""The configuration in words: as YAML with comments, and as docs/reference/configuration.md.

Both are made from the fields of `dynammo.config.Config`, so they say what is checked.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel

from dynammo.config import Config

_WIDTH = 96
_INTRODUCTION = """\
# Configuration

<!-- Made by `dynammo config --markdown > docs/reference/configuration.md`; a test compares. -->

One YAML file, `params.yaml`, holds an experiment. What it leaves out takes the default given here.
A wrong file is refused before anything is computed, with all of its errors at once.

To change a setting without editing the file:

| you run | you write |
|---|---|
| `dynammo run` | `--set train.epochs=3` (may be repeated) |
| `dvc exp run` | `-S train.epochs=3`; `-S +train.momentum=0.8` if the file lacks it |
| the Prefect deployment | `--param 'overrides={"train.epochs": 3}'` |

A value is read as YAML: `--set 'methods=[merged, frozen]'`, `--set 'scenario.tasks=[[a, b], [c]]'`,
`--set backbone.weights=null`. `dynammo config` prints what a run would use, with the meaning of
every setting; what it prints is itself a valid `params.yaml`.

Two pairs exclude each other, and exactly one of each pair is given: `scenario.classes_per_task` or
`scenario.tasks`, `memory.size` or `memory.per_class`. The defaults of these two hold where the file
leaves out the whole section; a file that has the section names one of the pair. Setting one with
`--set` or `--param` drops the other, whether the file or the default chose it.
"""


class Setting(NamedTuple):
    """One setting. `name` is dotted (`train.epochs`), `allowed` says in words which values pass."""

    name: str
    default: Any
    allowed: str
    meaning: str


class Group(NamedTuple):
    """A section of the configuration, or with the name "" the settings that are in none."""

    name: str
    meaning: str
    settings: list[Setting]


def groups() -> list[Group]:
    """All settings, those outside sections first."""
    default = Config()
    found = [Group("", "The experiment as a whole.", [*_settings(default, "")])]
    for name in Config.model_fields:
        section = getattr(default, name)
        if isinstance(section, BaseModel):
            meaning = inspect.getdoc(section) or ""
            found.append(Group(name, meaning, [*_settings(section, f"{name}.")]))
    return found


def to_yaml(config: Config) -> str:
    """A configuration as YAML that loads as itself, with the meaning of every setting above it."""
    values = config.model_dump(mode="json")
    lines: list[str] = []
    for group in groups():
        indent, here = ("  ", values[group.name]) if group.name else ("", values)
        if group.name:
            lines += ["", *_comment(group.meaning, ""), f"{group.name}:"]
        for setting in group.settings:
            name = setting.name.rpartition(".")[2]
            lines += _comment(f"{setting.meaning} ({setting.allowed})", indent)
            lines.append(f"{indent}{name}: {_value(here[name])}")
    return "\n".join(lines) + "\n"


def to_markdown() -> str:
    """The text of docs/reference/configuration.md."""
    parts = [_INTRODUCTION]
    for group in groups():
        parts.append(f"\n## {group.name or 'General'}\n\n{group.meaning}\n\n")
        parts.append("| setting | default | allowed | meaning |\n|---|---|---|---|\n")
        for name, default, *words in group.settings:
            cells = [f"`{name}`", f"`{_value(default)}`", *map(_escaped, words)]
            parts.append(f"| {' | '.join(cells)} |\n")
    return "".join(parts)


def _settings(section: BaseModel, prefix: str) -> Iterator[Setting]:
    properties = type(section).model_json_schema()["properties"]
    for name, value in section.model_dump(mode="json").items():
        if not isinstance(getattr(section, name), BaseModel):
            schema = properties[name]
            yield Setting(f"{prefix}{name}", value, _words(schema), schema.get("description", ""))


def _words(schema: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in schema:
        return "; or ".join(_words(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        *others, last = map(str, schema["enum"])
        return f"{', '.join(others)} or {last}" if others else last
    if schema.get("type") == "array":
        least = f", at least {schema['minItems']}" if "minItems" in schema else ""
        return f"list{least}, each: {_words(schema['items'])}"
    names = {
        "boolean": "true or false",
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "object": "mapping",
        "null": "null",
    }
    limits = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
        "pattern": "matching",
    }
    found = [f"{words} {schema[key]}" for key, words in limits.items() if key in schema]
    return ", ".join([names[schema["type"]], *found])


def _value(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump([value], default_flow_style=True, width=10**9, allow_unicode=True)
    return str(text).strip()[1:-1]


def _escaped(text: str) -> str:
    """Keep Markdown from taking `<name>` for a tag, `|` for a column's end and `_` for emphasis."""
    return re.sub(r"[<|*_\\]", r"\\\g<0>", text)


def _comment(text: str, indent: str) -> list[str]:
    start = f"{indent}# "
    return textwrap.wrap(
        text, _WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False
    )
