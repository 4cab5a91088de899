"""`dynammo config`: YAML with the meaning of every setting, and docs/reference/configuration.md."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from dynammo.adapters import ADAPTERS
from dynammo.config import Config, load_config
from dynammo.config.text import groups
from dynammo.merging import MERGE_RULES
from flows.cli import app

ROOT = Path(__file__).parents[2]


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["config", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {
            "seed": 3,
            "methods": ["frozen"],
            "train.learning_rate": 1e-5,
            "adapter.options": {"alpha": 0.1},
        },
        {"scenario.tasks": [["no", "yes: # it's"], ["1"]], "output": "a " + 200 * "long " + "name"},
        {
            "scenario.classes_per_task": 3,
            "scenario.class_order": ["a", "null"],
            "memory.per_class": 4,
            "data.name": "1",
        },
    ],
)
def test_what_is_printed_loads_as_the_same_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, object]
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no params.yaml
    wanted = load_config(None, overrides)
    file = tmp_path / "wanted.yaml"
    file.write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
    file.write_text(printed("--params", str(file)))
    assert load_config(file) == wanted


def test_every_setting_comes_with_its_meaning() -> None:
    settings = [setting for group in groups() for setting in group.settings]
    assert all(setting.meaning and setting.allowed for setting in settings)
    lines = printed().splitlines()
    for name, value in Config().model_dump().items():
        for key in value if name in Config.model_fields and isinstance(value, dict) else [name]:
            (line,) = [
                number
                for number, text in enumerate(lines)
                if re.match(rf" *{key}:", text)
                and section_of(lines, number) == (name if isinstance(value, dict) else "")
            ]
            assert lines[line - 1].lstrip().startswith("# "), key


def section_of(lines: list[str], number: int) -> str:
    if lines[number][0] != " ":
        return ""
    return next(text for text in lines[number::-1] if re.match(r"\w+:$", text))[:-1]


def test_the_settings_are_those_of_the_configuration() -> None:
    found = {setting.name: setting.default for group in groups() for setting in group.settings}
    expected = {}
    for name, value in Config().model_dump(mode="json").items():
        section = isinstance(getattr(Config(), name), BaseModel)
        expected |= {f"{name}.{k}": v for k, v in value.items()} if section else {name: value}
    assert found == expected


def one_of(names: Iterable[str]) -> str:
    *others, last = sorted(names)
    return f"{', '.join(others)} or {last}"


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("seed", "whole number, at least 0, below 4294967296"),
        ("device", "auto, cpu, cuda or mps"),
        ("adapter.name", one_of(ADAPTERS)),
        ("merge.rule", one_of(MERGE_RULES)),
        ("merge.options", "mapping"),
        ("scenario.tasks", "list, at least 1, each: list, each: text; or null"),
        ("train.momentum", "number, at least 0, below 1"),
        ("train.flip", "true or false"),
        ("adapter.options", "mapping"),
    ],
)
def test_allowed_values_in_words(name: str, allowed: str) -> None:
    known = {setting.name: setting.allowed for group in groups() for setting in group.settings}
    assert known[name] == allowed


def test_the_document_is_up_to_date() -> None:
    document = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    assert document == printed("--markdown"), (
        "run: .venv/bin/dynammo config --markdown > docs/reference/configuration.md"
    )
