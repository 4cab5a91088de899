"""Sets that come as arrays are written once as image files: `train/<class>/*`, `test/<class>/*`.

The files are PGM and PPM: lossless, and their bytes are the same on every machine, whatever
library versions are installed. So the content hash names the data, not the encoder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynammo.checkpoint import to_json
from dynammo.data.samples import ImageSet
from dynammo.data.sources import folder
from dynammo.errors import DataError

# Hidden, so that the folder source takes no notice of it.
MARKER = ".dynammo-data.json"


def written(
    directory: Path,
    what: str,
    write: Callable[[Path], None],
    recipe: Mapping[str, Any] | None = None,
    expected: str | None = None,
) -> ImageSet:
    """The set in a folder, written there first, all or nothing, if it is missing or empty.

    What is there already is only checked. Which set it is tells either a constant (`expected`) or a
    hidden file that is written beside the images, with the recipe and the content hash.

    Args:
        directory: the folder.
        what: what to call the set in an error: "the digits".
        write: writes the files into the folder that it is given, which does not exist yet.
        recipe: what the set was made of and how, as plain values.
        expected: content hash, where it is known beforehand; then no hidden file is written.

    Raises:
        DataError: the folder holds something else, a changed set, or one of another recipe; what
            was written is not as expected.
    """
    directory = directory.absolute()
    plan = json.loads(json.dumps(dict(recipe or {})))
    if _occupied(directory):
        return _verified(directory, what, plan, expected)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as temporary:
        draft = Path(temporary) / "images"
        write(draft)
        if expected is None:
            marker = {"set": what, "recipe": plan, "content_hash": folder.load(draft).content_hash}
            (draft / MARKER).write_bytes(to_json(marker))
        image_set = _verified(draft, what, plan, expected)
        try:
            draft.rename(directory)
        except OSError:
            if not _occupied(directory):  # else another process was faster
                raise
            return _verified(directory, what, plan, expected)
    return replace(image_set, root=directory)


def write_pnm(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write (H, W) as PGM or (H, W, 3) as PPM, 8 bits; the folder is made if it is missing.

    By hand rather than by a library whose headers may change.
    """
    kind = b"P5" if pixels.ndim == 2 else b"P6"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = kind + f"\n{pixels.shape[1]} {pixels.shape[0]}\n255\n".encode()
    path.write_bytes(header + np.ascontiguousarray(pixels).tobytes())


def _occupied(directory: Path) -> bool:
    return directory.exists() and (not directory.is_dir() or any(directory.iterdir()))


def _verified(directory: Path, what: str, recipe: dict[str, Any], expected: str | None) -> ImageSet:
    head = f"{directory} holds something other than {what}; move it or name another folder"
    if expected is None:
        try:
            marker = json.loads((directory / MARKER).read_text(encoding="utf-8"))
            found, expected = marker["recipe"], marker["content_hash"]
            same = marker["set"] == what
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{head} (no readable {MARKER} in it)") from None
        if not same:
            raise DataError(f"{head} (it holds {marker['set']})")
        if found != recipe:
            raise DataError(f"{head} (it was made with {found}, asked for is {recipe})")
    try:
        image_set = folder.load(directory)
    except DataError as error:
        raise DataError([head, *error.problems]) from None
    if image_set.content_hash != expected:
        raise DataError(
            f"{directory} does not hold {what}: its content hash is {image_set.content_hash}, "
            f"expected {expected}; move it or name another folder"
        )
    return image_set
