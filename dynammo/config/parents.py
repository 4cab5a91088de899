"""Read what classes belong to from a file: a CSV `class,parent`, or YAML `class: parent`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from dynammo.config.documents import read_yaml
from dynammo.config.sections import ParentsFile
from dynammo.data.sources.csv_manifest import read_table
from dynammo.errors import ConfigError, DataError, shown
from dynammo.hierarchy import problems_of_parents

_SETTING = "classes.parents"
_COLUMNS = ("class", "parent")
_TOLD = 5  # so many changes in a note


def read_parents(given: Any) -> ParentsFile:
    """The file that the setting names.

    Args:
        given: its name; the ending .csv, .yaml or .yml says what it is.

    Raises:
        ConfigError: it is no name of such a file, cannot be read, or says no hierarchy: a class
            with two parents, below itself, or without a parent. All problems at once.
    """
    endings = (".csv", ".yaml", ".yml")
    if not isinstance(given, str) or not given.lower().endswith(endings):
        raise ConfigError(
            [f"{_SETTING}: expected the name of a file *.csv or *.yaml, got {shown(given)}"]
        )
    path = Path(given)
    try:
        rows = (_of_csv if path.suffix.lower() == ".csv" else _of_yaml)(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (DataError, ConfigError) as error:
        raise ConfigError([f"{_SETTING}: {problem}" for problem in error.problems]) from None
    content: dict[str, str] = {}
    first: dict[str, str] = {}
    problems = []
    for place, name, parent in rows:
        if not name or not parent:
            lacking = "a parent" if name else "a class"
            problems.append(f"{place}: {name + parent!r} lacks {lacking}: leave out what has none")
        elif name in content:
            problems.append(
                f"{place}: {name!r} is below {parent!r} and, in {first[name]}, below "
                f"{content[name]!r}: a class is named once"
            )
        else:
            content[name], first[name] = parent, place
    if content or not rows:  # more than all lines are wrong is to be said
        problems += [f"{path}: {problem}" for problem in problems_of_parents(content)]
    if problems:
        raise ConfigError([f"{_SETTING}: {problem}" for problem in problems])
    return ParentsFile(file=given, sha256=digest, content=content)


def changes(before: ParentsFile | None, now: ParentsFile | None) -> list[str]:
    """What a new hierarchy changes of the one before, as a note; none where they say the same."""
    old, new = (own.content if own else {} for own in (before, now))
    if old == new:
        return []
    if now is None:
        return [f"{_SETTING}: what {before.file if before else ''} said is given up"]
    told = [
        f"{name} is below {new[name]}, not below {old[name]}"
        if name in new and name in old
        else f"{name} is below {new[name]}"
        if name in new
        else f"{name} is named no more"
        for name in [*new, *(name for name in old if name not in new)]
        if old.get(name) != new.get(name)
    ]
    more = len(told) - _TOLD
    listed = "; ".join([*told[:_TOLD], *([f"and {more} more"] if more > 0 else [])])
    return [f"{_SETTING} is taken over from {now.file} (SHA-256 {now.sha256}): {listed}"]


def _of_csv(path: Path) -> list[tuple[str, str, str]]:
    """Of each line its place, a class and its parent."""
    header, rows = read_table(path)
    if missing := [name for name in _COLUMNS if name not in header]:
        raise DataError(
            f"{path} line 1: missing columns {', '.join(missing)}; expected class,parent, got "
            f"{','.join(header) or 'nothing'}"
        )
    return [
        (f"{path} line {line}", row["class"].strip(), row["parent"].strip()) for line, row in rows
    ]


def _of_yaml(path: Path) -> list[tuple[str, str, str]]:
    """Likewise; a text only is a name."""
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise DataError(f"{path}: expected lines 'class: parent', got {shown(document)}")
    wrong = [
        f"{path}: {shown(name)}: {shown(parent)}: expected names, in quotes where they are numbers"
        for name, parent in document.items()
        if not isinstance(name, str) or not isinstance(parent, str)
    ]
    if wrong:
        raise DataError(wrong)
    return [(str(path), name.strip(), parent.strip()) for name, parent in document.items()]
