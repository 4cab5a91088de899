"""Images listed in a CSV: columns `file,split,class` and, if wanted, `group`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from dynammo.data.samples import SPLITS, ImageSet, list_samples
from dynammo.data.sources.about import About
from dynammo.errors import DataError

_COLUMNS = ("file", "split", "class")
LONGEST = 32  # bytes of a text in a further column

ABOUT = About(
    title="your own images, listed in a CSV",
    source="your own",
    licence="yours",
    size="any",
    classes="any",
    citation="none",
    protocol="none",
    layout="a CSV with the columns file, split, class and, if wanted, group; or a folder with "
    "manifest.csv in it",
)


def load(path: Path, columns: Sequence[str] = ()) -> ImageSet:
    """List the images that a CSV names, see `read`."""
    return read(path, columns=columns)


def read(
    path: Path,
    default_split: str | None = None,
    labelled: bool = True,
    columns: Sequence[str] = (),
) -> ImageSet:
    """List the images that a CSV names.

    Files are relative to the CSV's folder, with forward slashes; a folder is a volume's slices.
    Split is `train` or `test`. An empty `group` is none. Further columns are ignored, unless
    `columns` names them.

    Args:
        path: the CSV, or a folder that holds `manifest.csv`.
        default_split: of images without one; the column may then be missing. None: it is needed.
        labelled: every image has a class; otherwise it may be empty, or the column missing.
        columns: further ones to keep of each image; a cell may be empty.

    Raises:
        DataError: the CSV cannot be read, lacks columns or rows, or a line has an unknown split, no
            class, a file that is missing, listed twice or outside the folder, or too long a text in
            a further column. All problems at once, with their lines.
    """
    path = (path / "manifest.csv" if path.is_dir() else path).absolute()
    header, lines = read_table(path)
    needed = ["file", *["split"] * (default_split is None), *["class"] * labelled]
    if missing := [name for name in needed if name not in header]:
        raise DataError(
            f"{path} line 1: missing columns {', '.join(missing)}; expected file,split,class and "
            f"optionally group, got {','.join(header) or 'nothing'}"
        )
    if missing := [name for name in columns if name not in header]:
        raise DataError(
            f"{path} line 1: missing columns {', '.join(missing)}, which are asked for "
            f"(retention.subgroups, clinical); got {','.join(header)}"
        )
    if not lines:
        raise DataError(f"{path}: no images listed")

    rows: list[tuple[str, str, str, str | None]] = []
    more: dict[str, tuple[tuple[str, str], ...]] = {}
    problems: list[str] = []
    first: dict[str, int] = {}
    for line, row in lines:
        cell, split, label = (row.get(name, "").strip() for name in _COLUMNS)
        split = split or default_split or ""
        file = PurePosixPath(cell).as_posix()
        wrong = []
        if split not in SPLITS:
            wrong.append(f"unknown split {split!r}; expected train or test")
        if not label and labelled:
            wrong.append("empty class")
        if not cell:
            wrong.append("empty file")
        elif cell[0] == "/" or ".." in PurePosixPath(cell).parts:
            wrong.append(f"{cell} is outside {path.parent}; expected a path inside it")
        elif file in first:
            wrong.append(f"{cell} is listed already in line {first[file]}")
        elif not (path.parent / file).exists():
            wrong.append(f"no file {cell} in {path.parent}")
        more[file] = tuple((name, row.get(name, "").strip()) for name in columns)
        wrong += [
            f"{name} {value!r} is longer than {LONGEST} bytes: expected a group, such as 40-59"
            for name, value in more[file]
            if len(value.encode()) > LONGEST
        ]
        first.setdefault(file, line)
        problems += [f"{path.name} line {line}: {text}" for text in wrong]
        rows.append((file, split, label, row.get("group", "").strip() or None))
    if problems:
        raise DataError(problems)
    listed = list_samples(path.parent, rows)
    if not columns:
        return listed
    samples = tuple(replace(own, columns=more[own.file]) for own in listed.samples)
    return ImageSet(listed.root, samples)


def read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The names of a CSV's columns, and its rows with their lines.

    Raises:
        DataError: it cannot be read, or is no CSV in UTF-8.
    """
    try:
        # Excel writes a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="", skipinitialspace=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            return header, [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV in UTF-8: {error}") from None
