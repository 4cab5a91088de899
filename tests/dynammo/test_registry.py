from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dynammo.adapters import ADAPTERS
from dynammo.config import load_config
from dynammo.data import DATA_SOURCES
from dynammo.errors import ConfigError
from dynammo.heads import HEAD_RULES
from dynammo.merging import MERGE_RULES
from dynammo.methods import METHODS
from dynammo.registry import Registry

REGISTRIES: dict[str, Registry[Any]] = {
    "dynammo.adapters": ADAPTERS,
    "dynammo.merge_rules": MERGE_RULES,
    "dynammo.heads": HEAD_RULES,
    "dynammo.methods": METHODS,
    "dynammo.data_sources": DATA_SOURCES,
}


@pytest.mark.parametrize("registry", REGISTRIES.values(), ids=lambda r: r.kind)
def test_every_entry_can_be_imported(registry: Registry[Any]) -> None:
    assert registry
    for name in registry:
        assert callable(registry[name])


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    known = ", ".join(sorted(MERGE_RULES))
    with pytest.raises(ConfigError, match=f"unknown merge rule 'mean'; known: {known}"):
        MERGE_RULES["mean"]


def test_a_name_is_registered_once() -> None:
    registry: Registry[Callable[[float], float]] = Registry("part", {"a": "math:sqrt"})
    registry.add("b", "math:floor")
    registry.add("b", "math:floor")
    assert registry["b"](1.5) == 1
    with pytest.raises(ConfigError, match="already registered"):
        registry.add("a", "math:floor")


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package for one test: metadata as pip leaves them, and a module."""
    for registry in REGISTRIES.values():
        monkeypatch.setattr(registry, "_found", None)
    monkeypatch.syspath_prepend(tmp_path)

    def write(package: str, group: str, *lines: str, code: str = "") -> None:
        metadata = tmp_path / f"{package}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Name: {package}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
        (tmp_path / f"{package}.py").write_text(code)

    yield write
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.mark.parametrize("group", REGISTRIES)
def test_an_installed_package_registers_a_part(group: str, install: Install) -> None:
    registry = REGISTRIES[group]
    before = list(registry)
    registry._found = None
    install("aparts", group, "mine = aparts:Mine", code="class Mine: ...")
    assert "mine" in registry
    assert list(registry) == [*before, "mine"]  # the order of figures stays
    assert len(registry) == len(before) + 1
    assert "aparts" not in sys.modules, "it is imported before it is asked for"
    assert registry.module("mine") == "aparts"
    assert registry["mine"] is sys.modules["aparts"].Mine
    with pytest.raises(ConfigError, match=f"unknown {registry.kind} 'x'; known: .*mine"):
        registry["x"]
    with pytest.raises(ConfigError, match="already registered"):
        registry.add("mine", "math:floor")


def test_the_configuration_takes_its_name(install: Install) -> None:
    install("aparts", "dynammo.merge_rules", "mine = aparts:mine")
    assert load_config(None, {"merge.rule": "mine"}).merge.rule == "mine"
    with pytest.raises(ConfigError, match=r"unknown merge rule 'm'; known: .*mine,"):
        load_config(None, {"merge.rule": "m"})


def test_a_name_that_is_taken(install: Install) -> None:
    group = "dynammo.adapters"
    install("aparts", group, "conv = aparts:Conv", "mine = aparts:Mine", "odd = aparts")
    install("bparts", group, "mine = bparts:Mine", "linear = dynammo.adapters.linear:LinearAdapter")
    assert ADAPTERS["conv"].__module__ == "dynammo.adapters.conv"  # built-in names win
    with pytest.raises(ConfigError) as caught:
        load_config()  # though nothing is asked for by name
    problems = sorted(caught.value.problems)
    assert problems[0] == (
        "adapter 'conv' of the package aparts: the name is taken by the built-in adapter"
    )
    assert problems[2] == "adapter 'odd' of the package aparts: 'aparts' is not module:attribute"
    owners = [part for part in ("aparts", "bparts") if part in problems[1]]
    assert owners == ["aparts", "bparts"] and "'mine'" in problems[1]
    with pytest.raises(ConfigError, match="the name is taken"):
        list(ADAPTERS)


def test_a_part_that_cannot_be_imported(install: Install) -> None:
    lines = ("mine = aparts:mine", "gone = aparts.gone:mine")
    install("aparts", "dynammo.merge_rules", *lines)
    for name, reason in {"mine": "no attribute 'mine'", "gone": "No module named"}.items():
        with pytest.raises(ConfigError, match=rf"merge rule '{name}' \(aparts.* {reason}"):
            MERGE_RULES[name]


def test_a_table_without_a_group_asks_nobody(install: Install) -> None:
    install("aparts", "None", "b = aparts:b")
    assert list(Registry("part", {"a": "math:sqrt"})) == ["a"]


def test_tables_import_no_part() -> None:
    packages = "adapters, data, heads, merging, methods"
    code = f"import sys; from dynammo import {packages}; print('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    told = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert told.stdout == "False\n", told.stderr
