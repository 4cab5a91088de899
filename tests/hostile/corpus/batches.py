"""Folders and CSVs of images: what `run` and `learn` are given."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dynammo.data.checks import check_image_set
from dynammo.data.samples import read_manifest, write_manifest
from dynammo.data.sources import csv_manifest, folder
from dynammo.learner.batch import load_batch
from dynammo.learner.ledger import Ledger
from tests.hostile.corpus.judging import Case

KEY = "ab" * 32
GOOD = "file,split,class\n1.png,train,a\n2.png,test,a\n"
CSVS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "missing columns"),
    "a heading alone": (b"file,split,class\n", "no images listed"),
    "no class column": (b"file,split\n1.png,train\n", "missing columns class"),
    "semicolons": (GOOD.replace(",", ";").encode(), "missing columns"),
    "tabs": (GOOD.replace(",", "\t").encode(), "missing columns"),
    "UTF-16": (GOOD.encode("utf-16"), "not a CSV in UTF-8"),
    "Latin-1": (GOOD.replace("train,a", "train,\u00e9").encode("latin-1"), "not a CSV in UTF-8"),
    "a NUL": (GOOD.encode() + b"\0,train,a\n", "not a CSV|no file|NUL"),
    "a NUL in a name": (GOOD.encode() + b"a\0b.png,train,a\n", "not a CSV|no file|NUL"),
    "an open quote": (GOOD.encode() + b'"1.png,train,a\n', "no file|listed already|unknown split"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "not a CSV in UTF-8"),
    "a cell of 200,000 letters": (
        GOOD.encode() + b"a" * 200_000 + b",train,a\n",
        "not a CSV|field larger",
    ),
    "an unknown split": (GOOD.encode() + b"3.png,valid,a\n", "unknown split 'valid'"),
    "an empty class": (GOOD.encode() + b"3.png,train,\n", "empty class"),
    "an empty file": (GOOD.encode() + b",train,a\n", "empty file"),
    "a missing file": (GOOD.encode() + b"9.png,train,a\n", "no file 9.png"),
    "a file twice": (GOOD.encode() + b"1.png,train,a\n", "listed already in line 2"),
    "a file twice, written otherwise": (GOOD.encode() + b"./1.png,train,a\n", "listed already"),
    "an absolute path": (GOOD.encode() + b"/etc/passwd,train,a\n", "is outside"),
    "a path upwards": (GOOD.encode() + b"../../etc/passwd,train,a\n", "is outside"),
    "a folder": (GOOD.encode() + b".,train,a\n", "no file"),
    "a FIFO": (GOOD.encode() + b"pipe.png,train,a\n", "no file pipe.png"),
    "a device": (GOOD.encode() + b"zero.png,train,a\n", "no file zero.png"),
    "a name of 300 letters": (GOOD.encode() + b"a" * 300 + b".png,train,a\n", "no file|too long"),
    "too many cells": (GOOD.encode() + b"3.png,train,a,g,x,y\n", ""),
}
NAMES = {
    "a formula": "=HYPERLINK(1)",
    "another formula": "@SUM(1)",
    "a line break": "a\nb",
    "text turned around": "a\u202eb",
    "zero width": "a\u200bb",
    "a trailing blank": "b\u00a0",
    "a NUL of another kind": "a\u2400\x7f",
}


def cases() -> Iterator[Case]:
    """All about batches."""
    for name, (content, says) in CSVS.items():
        yield Case("CSV", name, partial(_csv, content), says or None)
        if name not in ("an unknown split", "too many cells"):
            yield Case("batches", f"CSV: {name}", partial(_batch_csv, content), says)
    for name, own in NAMES.items():
        yield Case("classes", name, partial(_named, own), "do not show|formula|told apart|empty")
    yield Case("classes", "the same in another form", _twin_names, "cannot be told apart")
    for name, (make, says) in _folders().items():
        yield Case("folders", name, partial(_folder, make), says)
    for name, (make, says) in _batches().items():
        yield Case("batches", name, partial(_batch, make), says)
    for name, change in _manifests().items():
        yield Case("manifests", name, partial(_manifest, change), "manifest|cannot read|damaged")


def picture(file: Path, seed: int = 0) -> Path:
    """A picture of noise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def _three(place: Path) -> None:
    for number in (1, 2, 3):
        picture(place / f"{number}.png", number)
    os.mkfifo(place / "pipe.png")
    (place / "zero.png").symlink_to("/dev/zero")


def _csv(content: bytes, place: Path) -> None:
    _three(place)
    (place / "manifest.csv").write_bytes(content)
    assert len(csv_manifest.load(place).samples) == 3


def _batch_csv(content: bytes, place: Path) -> None:
    _three(place)
    (place / "manifest.csv").write_bytes(content)
    load_batch(place, 0.2, Ledger.empty(), KEY)


def _named(name: str, place: Path) -> None:
    for number, split in enumerate(("train", "test")):
        picture(place / split / name / "1.png", number)
        picture(place / split / "other" / "1.png", 10 + number)
    check_image_set(folder.load(place), "refuse")


def _twin_names(place: Path) -> None:
    for number, name in enumerate(("na\u00efve", "nai\u0308ve")):
        for split in ("train", "test"):
            picture(place / split / name / "1.png", number + 2 * (split == "test"))
    check_image_set(folder.load(place), "refuse")


def _sound(place: Path) -> None:
    for index, (split, name) in enumerate(
        (split, name) for split in ("train", "test") for name in ("a", "b")
    ):
        for number in range(2):
            picture(place / split / name / f"{number}.png", 10 * index + number)


def _folder(make: Callable[[Path], Any], place: Path) -> None:
    _sound(place)
    make(place)
    check_image_set(folder.load(place), "refuse")


def _batch(make: Callable[[Path], Any], place: Path) -> None:
    _sound(place)
    given = make(place)
    image_set, _ = load_batch(given or place, 0.2, Ledger.empty(), KEY)
    check_image_set(image_set, "refuse")


def _folders() -> dict[str, tuple[Callable[[Path], Any], str | None]]:
    a = "train/a"
    return {
        "no test images": (lambda p: (p / "test").rename(p / "other"), "test: no such folder"),
        "no class": (lambda p: [f.rename(p / f.name) for f in (p / "test").iterdir()], "no class"),
        "a class in train alone": (lambda p: picture(p / "train/c/1.png", 77), "not in test"),
        "a class without images": (
            lambda p: (
                (p / "train/a/0.png").rename(p / "x") and (p / "train/a/1.png").rename(p / "y")
            ),
            "without images",
        ),
        "an image in no class": (lambda p: picture(p / "train/x.png"), "in no class folder"),
        "a FIFO": (lambda p: os.mkfifo(p / a / "pipe.png"), "no regular file"),
        "a device": (lambda p: (p / a / "z.png").symlink_to("/dev/zero"), "no regular file"),
        "random bytes without an end": (
            lambda p: (p / a / "r.png").symlink_to("/dev/urandom"),
            "no regular file",
        ),
        "a folder called .png": (lambda p: (p / a / "f.png").mkdir(), None),
        "a name that is not UTF-8": (
            lambda p: Path(os.fsdecode(os.fsencode(p / a) + b"/\xe9.png")).write_bytes(b"x"),
            "not UTF-8",
        ),
        "a class that is not UTF-8": (
            lambda p: picture(Path(os.fsdecode(os.fsencode(p) + b"/train/\xe9/1.png")), 3),
            "not UTF-8",
        ),
        "a link to a folder above": (
            lambda p: (p / a / "up").symlink_to(p),
            "same|twice|is in",
        ),
        "a link to itself": (lambda p: (p / a / "me.png").symlink_to(p / a / "me.png"), "links"),
        "a dangling link": (lambda p: (p / a / "d.png").symlink_to("nowhere"), "No such file"),
        "loops of links": (lambda p: (p / a / "loop").symlink_to(p / a), None),
        "the same image in train and test": (
            lambda p: picture(p / "test/a/same.png", 0),
            "train and|both|also",
        ),
        "the same image under two classes": (
            lambda p: picture(p / "train/b/same.png", 0),
            "classes|two|also",
        ),
        "hidden files": (lambda p: (p / a / ".hidden.png").write_bytes(b"x"), None),
        "files of another kind": (lambda p: (p / a / "notes.txt").write_bytes(b"x"), None),
    }


def _batches() -> dict[str, tuple[Callable[[Path], Any], str | None]]:
    return {
        "no folder": (lambda p: p / "no", "no such file or folder"),
        "an empty folder": (lambda p: _made(p / "empty"), "no class|class folder|no image"),
        "a picture": (lambda p: p / "train/a/0.png", "not a CSV in UTF-8"),
        "a FIFO": (_fifo, "Not a directory"),
        "a device": (lambda _: Path("/dev/zero"), "Not a directory"),
        "a class with test images alone": (
            lambda p: picture(p / "test/c/1.png", 55) and None,
            "no training images|not in train",
        ),
        "a NUL in the path": (lambda p: Path(f"{p}/a\0"), "null|no such"),
        "a path of 500 letters": (lambda p: p / ("a" * 500), "too long|no such"),
    }


def _made(place: Path) -> Path:
    place.mkdir()
    return place


def _fifo(place: Path) -> Path:
    os.mkfifo(place / "pipe")
    return place / "pipe"


def _manifests() -> dict[str, Callable[[dict[str, Any]], Any]]:
    first = "samples"
    return {
        "nothing": lambda d: "",
        "a list": lambda d: "[]",
        "a number": lambda d: "3",
        "null": lambda d: "null",
        "half": lambda d: json.dumps(d)[:100],
        "nested 200,000 deep": lambda d: "[" * 200_000 + "]" * 200_000,
        "no samples": lambda d: json.dumps({k: v for k, v in d.items() if k != first}),
        "samples as text": lambda d: json.dumps(d | {first: "abc"}),
        "samples of lists": lambda d: json.dumps(d | {first: [[1, 2, 3]]}),
        "a sample more": lambda d: json.dumps(d | {first: [*d[first], d[first][0]]}),
        "a sample less": lambda d: json.dumps(d | {first: d[first][1:]}),
        "a label changed": lambda d: json.dumps(
            d | {first: [d[first][0] | {"label": "z"}, *d[first][1:]]}
        ),
        "a label by number": lambda d: json.dumps(
            d | {first: [d[first][0] | {"label": 3}, *d[first][1:]]}
        ),
        "an unknown key": lambda d: json.dumps(
            d | {first: [d[first][0] | {"x": 1}, *d[first][1:]]}
        ),
        "another format": lambda d: json.dumps(d | {"format": 9}),
        "no root": lambda d: json.dumps({k: v for k, v in d.items() if k != "root"}),
        "a root by number": lambda d: json.dumps(d | {"root": 3}),
    }


def _manifest(change: Callable[[dict[str, Any]], Any], place: Path) -> None:
    _sound(place)
    file = place / "manifest.json"
    write_manifest(folder.load(place), file)
    file.write_text(change(json.loads(file.read_text())))
    read_manifest(file)
