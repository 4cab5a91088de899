"""Images in one folder, with split and class in their names: `train_naevus_0001.png`."""

from __future__ import annotations

from pathlib import Path

from dynammo.data.samples import SPLITS, ImageSet, list_samples
from dynammo.data.sources.folder import image_files
from dynammo.errors import DataError


def load(path: Path) -> ImageSet:
    """List the images `<split>_<class>_<anything>` of a folder.

    Raises:
        DataError: no images, or names that are not of that form. All problems at once.
    """
    root = path.absolute()
    rows: list[tuple[str, str, str, str | None]] = []
    problems: list[str] = []
    for file in image_files(root):
        split, _, rest = file.stem.partition("_")
        label, _, number = rest.partition("_")
        if split not in SPLITS or not label or not number:
            problems.append(f"{file}: expected <split>_<class>_<anything>, split train or test")
        rows.append((file.relative_to(root).as_posix(), split, label, None))
    if problems:
        raise DataError(problems)
    return list_samples(root, rows)
