"""CIFAR-100: 60,000 small photographs of 100 kinds of things.

The official archive comes in three versions. The Python one holds pickles, and loading a pickle
runs whatever code it contains; no pickle is ever loaded here, so torchvision's loader, which
unpickles, is not used. The binary version holds the same images and labels as plain bytes.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dynammo.data.samples import ImageSet
from dynammo.data.sources.about import About
from dynammo.data.sources.download import fetch
from dynammo.data.sources.fetching import write_pnm, written
from dynammo.errors import DataError

ABOUT = About(
    title="CIFAR-100, photographs of 32 x 32 pixels",
    source="https://www.cs.toronto.edu/~kriz/cifar.html",
    licence="none stated; the authors ask to be cited",
    size="50,000 train, 10,000 test (download: 161 MB)",
    classes="100: animals, plants, people, vehicles, things and places",
    citation="A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009",
    protocol="10 tasks of 10 classes, memory 2000, accuracy: benchmarks/protocols/cifar100.yaml",
    layout="a folder, downloaded and written by the first run; some test pictures are in train, "
    "too, so it needs data.repeats: warn",
    written=True,
)

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
MD5 = "03b5dce01913d631647c71ecec9e9cb8"
_SIDE = 32
_RECORD = 2 + 3 * _SIDE * _SIDE  # superclass, class, then the red, green and blue planes


def load(path: Path) -> ImageSet:
    """CIFAR-100 in a folder, fetched and written there first if it is missing or empty.

    `<split>/<class>/NNNNN.ppm`, 32 x 32 RGB, where NNNNN is the index in the official file and the
    class one of the 100 fine labels. Pixels are those of the archive, unchanged.

    Pictures of the test split are in train, too (Barz and Denzler 2020, arXiv 1902.00423, counted
    copies and near copies of a tenth of them). The set is not altered, or results would not
    compare, so it needs `data.repeats: warn`.

    Raises:
        DataError: the folder holds something else; the archive can neither be found nor fetched, or
            is damaged.
    """
    return written(path, "CIFAR-100", _write, recipe={"md5": MD5})


def _write(directory: Path) -> None:
    archive = fetch(URL, URL.rpartition("/")[2], MD5)
    members = _members(archive, "fine_label_names.txt", "train.bin", "test.bin")
    names = members["fine_label_names.txt"].decode().split()
    problems = []
    for split in ("train", "test"):
        content = members[f"{split}.bin"]
        if not content or len(content) % _RECORD:
            problems.append(
                f"{archive}: {split}.bin has {len(content)} bytes; expected a multiple of {_RECORD}"
            )
            continue
        records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
        if (largest := int(records[:, 1].max())) >= len(names):
            problems.append(f"{archive}: {split}.bin has label {largest} of {len(names)} names")
            continue
        pictures = records[:, 2:].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
        for index in tqdm(range(len(records)), f"write {split}", disable=None, leave=False):
            file = directory / split / names[records[index, 1]] / f"{index:05}.ppm"
            write_pnm(file, pictures[index])
    if problems:
        raise DataError(problems)


def _members(archive: Path, *names: str) -> dict[str, bytes]:
    """Files of a tar, read in memory: nothing is extracted, so no path in it can do harm."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if name in names and (file := tar.extractfile(member)):
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"cannot read {archive}: {error}") from None
    if missing := sorted(set(names) - set(found)):
        raise DataError(f"{archive} holds no {', '.join(missing)}")
    return found
