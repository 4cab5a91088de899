"""A file of parents: read once, kept whole, and what is wrong with it said in lines."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from dynammo.config import ParentsFile, load_config
from dynammo.config.parents import changes, read_parents
from dynammo.config.text import to_yaml
from dynammo.errors import ConfigError
from dynammo.learner.settings import first_settings, next_settings

CSV = "class,parent\nMEL,malignant\n NV , benign\n"
PARENTS = {"MEL": "malignant", "NV": "benign"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str | bytes) -> str:
    content = text if isinstance(text, bytes) else text.encode()
    Path(name).write_bytes(content)
    return name


def own(content: dict[str, str], name: str = "p.csv") -> ParentsFile:
    return ParentsFile(file=name, sha256="a" * 64, content=content)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", CSV),
        ("p.CSV", "\ufeffparent,note,class\nmalignant,x,MEL\nbenign,,NV\n"),
        ("p.yaml", "MEL: malignant\nNV: ' benign'\n"),
        ("p.yml", "{MEL: malignant, NV: benign}"),
    ],
)
def test_a_file_is_read_whole(here: Path, name: str, text: str) -> None:
    found = read_parents(write(name, text))
    assert (found.file, found.content) == (name, PARENTS)
    assert found.sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("p.csv", "", "p.csv line 1: missing columns class, parent"),
        ("p.csv", "class;parent\na;b\n", "p.csv line 1: missing columns class, parent"),
        ("p.csv", "class,parent\n", "p.csv: no class has a parent"),
        ("p.csv", "class,parent\na,b\na,c\n", "p.csv line 3: 'a' is below 'c' and, in p.csv line "
         "2, below 'b': a class is named once"),
        ("p.csv", "class,parent\na,b\nb,a\n", "p.csv: 'a' is below 'b' is below 'a': a circle"),
        ("p.csv", "class,parent\na,\n", "p.csv line 2: 'a' lacks a parent"),
        ("p.csv", "class,parent\n,b\n", "p.csv line 2: 'b' lacks a class"),
        ("p.csv", b"class,parent\n\xff,b\n", "p.csv is not a CSV in UTF-8"),
        ("p.yaml", "[a, b]", "p.yaml: expected lines 'class: parent', got ['a', 'b']"),
        ("p.yaml", "a: [", "p.yaml is not valid YAML"),
        ("p.yaml", "a: b\na: c", "the key 'a' is given twice"),
        ("p.yaml", "' a': b\n'a': c", "p.yaml: 'a' is below 'c' and, in p.yaml, below 'b'"),
        ("p.yaml", "1: b", "p.yaml: 1: 'b': expected names, in quotes where they are numbers"),
        ("p.yaml", "a: null", "p.yaml: 'a': None: expected names"),
        ("p.txt", "a,b", "expected the name of a file *.csv or *.yaml, got 'p.txt'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_said_with_its_place(
    here: Path, name: str, text: str | bytes, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"classes.parents": write(name, text), "seed": -1})
    first, last = caught.value.problems
    assert first.startswith("classes.parents: ") and problem in first
    assert last.startswith("seed: ")  # beside all other problems


def test_a_file_that_is_not_there(here: Path) -> None:
    for name in ("none.csv", "none.yaml"):
        with pytest.raises(ConfigError, match=rf"classes\.parents: cannot read {name}: No such"):
            load_config(None, {"classes.parents": name})
    with pytest.raises(ConfigError, match="got 3"):
        load_config(None, {"classes.parents": 3})


def test_what_it_says_is_kept_when_the_file_is_gone(here: Path) -> None:
    name = write("p.csv", CSV)
    config = first_settings("skin", None, {"classes": {"parents": name}})
    Path(name).unlink()
    assert config.classes.hierarchy == PARENTS
    assert load_config(None, config.model_dump(mode="json")) == config
    again = write("again.yaml", to_yaml(config))
    assert load_config(again) == config
    assert next_settings(config, {"train.epochs": 1}).classes == config.classes
    kept = yaml.safe_load(Path(again).read_text())["classes"]["parents"]
    kept["content"]["malignant"] = "MEL"
    with pytest.raises(ConfigError, match=r"classes\.parents: p\.csv: 'MEL' is below .* a circle"):
        load_config(None, {"classes": {"parents": kept}})


def test_a_new_file_takes_the_place_of_the_old_one(here: Path) -> None:
    config = first_settings("skin", None, {"classes.parents": write("p.csv", CSV)})
    later = next_settings(config, {"classes.parents": write("q.csv", "class,parent\nNV,mole\n")})
    assert later.classes.hierarchy == {"NV": "mole"}
    assert next_settings(later, {"classes.parents": None}).classes.hierarchy is None


def test_what_a_new_file_changes_is_told() -> None:
    was = own(PARENTS)
    now = own({"MEL": "malignant", "NV": "mole", "BKL": "benign"}, "q.csv")
    assert changes(was, now) == [
        f"classes.parents is taken over from q.csv (SHA-256 {'a' * 64}): NV is below mole, not "
        "below benign; BKL is below benign"
    ]
    assert changes(None, was) == [
        f"classes.parents is taken over from p.csv (SHA-256 {'a' * 64}): MEL is below malignant; "
        "NV is below benign"
    ]
    assert changes(was, own({"NV": "benign"}))[0].endswith(": MEL is named no more")
    assert changes(was, own(dict(reversed(PARENTS.items())), "q.csv")) == []
    assert changes(None, None) == []
    assert changes(was, None) == ["classes.parents: what p.csv said is given up"]
    many = own({f"c{n}": "g" for n in range(8)})
    assert changes(None, many)[0].endswith("c4 is below g; and 3 more")
