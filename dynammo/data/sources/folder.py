"""Images in folders: `train/<class>/*` and `test/<class>/*`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dynammo.data.formats.clips import CLIPS
from dynammo.data.formats.volumes import is_slice
from dynammo.data.samples import SPLITS, ImageSet, list_samples
from dynammo.data.sources.about import About
from dynammo.errors import DataError

EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".pgm", ".ppm"}
    | {".dcm", ".dicom"}
)
# A folder of slices is one, too.
VOLUMES = EXTENSIONS | CLIPS | {".nii", ".nii.gz", ".npy"}

ABOUT = About(
    title="your own images in folders",
    source="your own",
    licence="yours",
    size="any",
    classes="any",
    citation="none",
    protocol="none",
    layout="a folder with train/<class>/* and test/<class>/*",
)


def load(path: Path, volumes: bool = False) -> ImageSet:
    """List the images of `train/<class>/` and `test/<class>/`, folders inside them included.

    Hidden files and files that are no images by their extension (case does not matter) are ignored.

    Args:
        path: folder that holds `train` and `test`.
        volumes: images are volumes: files, or folders of slices.

    Raises:
        DataError: a split is missing or has no classes, a class has no images or is in one split
            only, an image is in no class folder, or what is called an image is no regular file or
            has a name that is not UTF-8. All problems at once.
    """
    path = path.absolute()
    problems = [
        f"{path / split}: no such folder; expected {split}/<class>/<image>"
        for split in SPLITS
        if not (path / split).is_dir()
    ]
    if problems:
        raise DataError(problems)

    rows: list[tuple[str, str, str, str | None]] = []
    classes: dict[str, set[str]] = {}
    for split in SPLITS:
        entries = sorted(entry for entry in (path / split).iterdir() if entry.name[0] != ".")
        folders = [entry for entry in entries if entry.is_dir()]
        classes[split] = {folder.name for folder in folders}
        if not folders:
            problems.append(f"{path / split}: no class folders")
        for entry in entries:
            if _is_named(entry, _extensions(volumes)) and entry not in folders:
                problems.append(f"{entry}: image in no class folder")
        for folder in folders:
            found = _listed(folder, problems, volumes)
            files = [file.relative_to(path).as_posix() for file in found]
            rows += [(file, split, folder.name, None) for file in files]
            if not files:
                known = ", ".join(sorted(_extensions(volumes)))
                problems.append(f"{folder}: class folder without images ({known})")
    if all(classes.values()):
        for name in sorted(classes["train"] ^ classes["test"]):
            here, other = SPLITS if name in classes["train"] else SPLITS[::-1]
            problems.append(f"class {name!r} is in {here} but not in {other}")
    if problems:
        raise DataError(problems)
    return list_samples(path, rows)


def image_files(folder: Path, volumes: bool = False) -> list[Path]:
    """Image files in a folder and below it, by extension, in order of name.

    With `volumes`, also theirs; and of each folder in it that holds slices the folder.

    Raises:
        DataError: a folder cannot be listed, or there is no image.
    """
    problems: list[str] = []
    files = sorted(_listed(folder, problems, volumes))
    if not files and not problems:
        known = ", ".join(sorted(_extensions(volumes)))
        problems.append(f"{folder}: no image files ({known})")
    if problems:
        raise DataError(problems)
    return files


def _extensions(volumes: bool) -> frozenset[str]:
    return VOLUMES if volumes else EXTENSIONS


def _listed(folder: Path, problems: list[str], volumes: bool) -> list[Path]:
    return _volumes(folder, problems) if volumes else _images(folder, problems, EXTENSIONS)


def _volumes(folder: Path, problems: list[str]) -> list[Path]:
    """Files of volumes in a folder and below it; of each folder below it that holds slices, the
    folder.
    """
    files: dict[Path, list[Path]] = {}
    for file in _images(folder, problems, VOLUMES):
        files.setdefault(file.parent, []).append(file)
    return [
        whole
        for parent, own in files.items()
        for whole in ([parent] if parent != folder and holds_slices(parent) else own)
    ]


def holds_slices(folder: Path) -> bool:
    """Whether a folder is one volume: its images are single pictures, by the first of them."""
    files = sorted(own for own in folder.iterdir() if own.is_file() and _is_named(own, EXTENSIONS))
    return len(files) > 1 and is_slice(files[0])


def _images(folder: Path, problems: list[str], extensions: frozenset[str]) -> list[Path]:
    """Image files in a folder and below it, each once, whatever links lead to it.

    What cannot be listed, is no regular file, or has a name that is not UTF-8 becomes a problem.
    """
    found = []
    for file in _walk(folder, problems, extensions):
        if not is_utf8(str(file)):
            problems.append(f"{str(file)!a}: the name is not UTF-8")
        elif file.exists() and not file.is_file():  # a dangling link is named when it is read
            problems.append(f"{file}: no regular file")
        else:
            found.append(file)
    own = {os.path.realpath(file) for file in found if not file.is_symlink()}
    return [file for file in found if not file.is_symlink() or os.path.realpath(file) not in own]


def _is_named(file: Path, extensions: frozenset[str]) -> bool:
    """Whether it is an image by its name."""
    name = file.name.lower()
    return name[0] != "." and any(name.endswith(own) and name != own for own in extensions)


def _walk(folder: Path, problems: list[str], extensions: frozenset[str]) -> Iterator[Path]:
    """What is an image by its name, through links to folders, but into each folder once."""

    def failed(error: OSError) -> None:
        problems.append(f"cannot list {error.filename}: {error.strerror}")

    seen = {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, onerror=failed, followlinks=True):
        # Real folders before links: which path is taken must not depend on the file system.
        inner = sorted(
            (name for name in folders if name[0] != "."),
            key=lambda name: (os.path.islink(os.path.join(parent, name)), name),
        )
        folders.clear()
        for name in inner:
            real = os.path.realpath(os.path.join(parent, name))
            if real not in seen:
                seen.add(real)
                folders.append(name)
        for name in files:
            if _is_named(Path(name), extensions):
                yield Path(parent, name)


def is_utf8(text: str) -> bool:
    """Names of other bytes come as surrogates, which no file of results can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
