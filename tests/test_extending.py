"""Adding a part is one file and one line, truly: done to a copy, whose tests then run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "how-to" / "extending.md").read_text(encoding="utf-8")
NAMES = re.findall(r"^`(dynammo/[\w/]+\.py)`: \[the whole file\]", TEXT, re.M)
FILES = [(name, (ROOT / "examples/parts" / Path(name).name).read_text("utf-8")) for name in NAMES]
LINES = re.findall(
    r"^The line in `(dynammo/\w+/__init__\.py)`:\n\n```python\n(.*?\n)```", TEXT, re.M | re.S
)
# What runs over a whole table, or names what it knows of one.
TESTS = [
    "tests/dynammo/adapters",
    "tests/dynammo/config/test_config.py",
    "tests/dynammo/data/sources/test_about.py",
    "tests/dynammo/heads/test_discriminant.py",
    "tests/dynammo/merging/test_inputs.py",
    "tests/dynammo/merging/test_measures.py",
    "tests/dynammo/merging/test_rules.py",
    "tests/dynammo/methods/test_all.py",
    "tests/dynammo/test_extending.py",
    "tests/dynammo/test_registry.py",
]


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with all examples of docs/how-to/extending.md added as that document says."""
    copy = tmp_path_factory.mktemp("extended")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"only git knows which files belong here: {listed.stderr}")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    for file, code in FILES:
        assert not (copy / file).exists()
        (copy / file).write_text(code, encoding="utf-8")
    for table, line in LINES:
        text = (copy / table).read_text(encoding="utf-8")
        assert text.count("\n    },\n") == 1
        (copy / table).write_text(text.replace("\n    },\n", f"\n{line}    }},\n"), "utf-8")
    return copy


def run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = (sys.executable, "-m", *command)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


def test_the_tests_hold_with_a_part_of_every_kind_added(extended: Path) -> None:
    """None of them has to be told of it, and those that run over a table take it in."""
    assert len(FILES) == len(LINES) == 6
    # Tests of the new parts, and those that speak of a table as a whole; the rest would take long.
    names = [line.strip().split('"')[1] for _, line in LINES]
    whole = ["test_config", "test_about", "test_registry", "described", "asks_for", "a_new"]
    chosen = " or ".join([*names, *whole])
    told = run(extended, "pytest", "-v", "-p", "no:cacheprovider", *TESTS, "-k", chosen)
    for test in (
        "test_the_smallest_map_is_as_declared[scale]",
        "test_an_adapter_for_a_layer_starts_from_the_pretrained_network[bitfit]",
        "test_adapters_that_do_not_fit_together_are_refused[median]",
        "test_every_rule_can_be_tried_before_training[median]",
        "test_a_rule_says_what_it_lacks[nearest_mean]",
        "test_every_source_describes_itself[prefixed]",
        "test_a_method_goes_on_from_its_state_as_if_it_had_never_stopped[neighbours]",
        "test_every_method_is_described",
    ):
        assert f"::{test} PASSED" in told, test


def test_the_examples_are_written_like_everything_here(extended: Path) -> None:
    files = [file for file, _ in [*FILES, *LINES]]
    run(extended, "ruff", "check", *files)
    run(extended, "ruff", "format", "--check", *files)
