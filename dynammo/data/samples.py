"""A data set before any image is decoded: a list of files with their split, class and hash."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from pathlib import Path

from dynammo.checkpoint import to_json, write_atomically
from dynammo.data.formats.pictures import read_stack, stack_hash
from dynammo.errors import DataError

SPLITS = ("train", "test")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sample:
    """One image file, or a folder of files that is one volume.

    Attributes:
        file: posix path relative to the image set's root.
        split: "train" or "test".
        label: name of the class.
        group: what must not be split (patient, lesion, slide), or None.
        sha256: of the file's bytes, hex; of a folder, `stack_hash`.
        columns: what else is kept of the image, such as ("sex", "f"): subgroups.
    """

    file: str
    split: str
    label: str
    group: str | None
    sha256: str
    columns: tuple[tuple[str, str], ...] = ()

    def row(self) -> tuple[object, ...]:
        """Its values; without `columns` where it has none, as before there were any."""
        return astuple(self) if self.columns else astuple(self)[:-1]


@dataclass(frozen=True)
class ImageSet:
    """The images of a data set, in an order that does not depend on how they were listed.

    Attributes:
        root: folder that the files are relative to.
        samples: sorted by (split, label, file).
    """

    root: Path
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        ordered = sorted(self.samples, key=lambda s: (s.split, s.label, s.file))
        object.__setattr__(self, "samples", tuple(ordered))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names, sorted."""
        return tuple(sorted({sample.label for sample in self.samples}))

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over all samples; two copies of a data set in two folders have the same."""
        return subset_hash(self.samples)

    def select(self, split: str, classes: Iterable[str]) -> tuple[Sample, ...]:
        """The samples of some classes in one split: class by class, as given, then by file.

        Raises:
            DataError: the split holds no image of a class.
        """
        classes = list(classes)
        if missing := [name for name in classes if (split, name) not in self._by_class]:
            raise DataError([f"no {split} images of class {name!r}" for name in missing])
        return tuple(sample for name in classes for sample in self._by_class[split, name])

    @cached_property
    def _by_class(self) -> dict[tuple[str, str], list[Sample]]:
        groups: dict[tuple[str, str], list[Sample]] = {}
        for sample in self.samples:
            groups.setdefault((sample.split, sample.label), []).append(sample)
        return groups


def subset_hash(samples: Iterable[Sample]) -> str:
    """SHA-256 (hex) over every sample's (file, split, label, group, sha256) and, where it has some,
    columns, in the order given.
    """
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(json.dumps(sample.row()).encode() + b"\n")
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hex; of a folder that is one volume, `stack_hash`.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        if path.is_dir():
            return stack_hash(read_stack(path))
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def hash_files(paths: Sequence[Path], progress: Progress | None = None) -> list[str]:
    """SHA-256 of each file, in order; several are read at a time.

    Args:
        paths: files.
        progress: called with (files done, files).

    Raises:
        DataError: files that cannot be read, all of them.
    """
    problems: list[str] = []

    def digest(path: Path) -> str:
        try:
            return hash_file(path)
        except DataError as error:
            problems.extend(error.problems)
            return ""

    digests = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(digest, paths):
            digests.append(result)
            if progress:
                progress(len(digests), len(paths))
    if problems:
        raise DataError(sorted(problems))
    return digests


def list_samples(
    root: Path, rows: Sequence[tuple[str, str, str, str | None]], progress: Progress | None = None
) -> ImageSet:
    """Hash the files of (file, split, label, group) rows and make them an image set.

    Raises:
        DataError: files that cannot be read.
    """
    digests = hash_files([root / row[0] for row in rows], progress)
    pairs = zip(rows, digests, strict=True)
    return ImageSet(root.absolute(), tuple(Sample(*row, digest) for row, digest in pairs))


def write_manifest(image_set: ImageSet, path: Path) -> None:
    """Write an image set as readable JSON, whole or not at all."""
    document = {
        "format": 1,
        "root": str(image_set.root.absolute()),
        "content_hash": image_set.content_hash,
        "samples": [asdict(sample) for sample in image_set.samples],
    }
    write_atomically(path, to_json(document))


def read_manifest(path: Path) -> ImageSet:
    """Read what `write_manifest` wrote. The images are not looked at.

    Raises:
        DataError: the file is missing, no image manifest, or was changed.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        samples = tuple(
            Sample(**{**own, "columns": tuple(map(tuple, own.get("columns", ())))})
            for own in document["samples"]
        )
        image_set = ImageSet(Path(document["root"]), samples)
        intact = document["format"] == 1 and document["content_hash"] == image_set.content_hash
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        kind = type(error).__name__
        raise DataError(f"{path} is not an image manifest ({kind}: {error})") from None
    if not intact:
        raise DataError(f"{path} is damaged: its content hash does not fit its samples")
    return image_set
