"""A data set that needs no download: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from sklearn.datasets import load_digits

from dynammo.data import folder
from dynammo.data.samples import ImageSet
from dynammo.errors import DataError

# Of the image set that `materialise` writes: the same on every machine.
CONTENT_HASH = "c40f1510d54a143adef81ef079d20fdb239d267f06bd7e2fdc769275af8e4404"


def load(path: Path) -> ImageSet:
    """The digits in a folder, written there first if it is missing or empty.

    Classes "0" to "9"; 1,442 train and 355 test images.

    Raises:
        DataError: the folder holds something else.
    """
    if not _occupied(path):
        materialise(path)
    return _verified(path)


def materialise(directory: Path) -> None:
    """Write the digits as `train/<class>/NNNN.pgm` and `test/<class>/NNNN.pgm`, all or nothing.

    NNNN is the index in `load_digits()`. Every fifth image of a class is a test image; no two of
    the 1,797 images are alike, so none is in both splits. Grey values v = 0..16 become
    (255 v + 8) // 16. A folder that holds the digits already is left alone.

    Raises:
        DataError: the folder holds something else, or scikit-learn's digits are not those expected.
    """
    directory = directory.absolute()
    if _occupied(directory):
        _verified(directory)
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as temporary:
        draft = Path(temporary) / "digits"
        _write(draft)
        _verified(draft)
        try:
            draft.rename(directory)
        except OSError:
            if not _occupied(directory):  # else another process was faster
                raise
            _verified(directory)


def _write(directory: Path) -> None:
    data = load_digits()
    pixels = ((255 * data.images.astype(np.int64) + 8) // 16).astype(np.uint8)
    for digit in range(10):
        for position, index in enumerate(np.flatnonzero(data.target == digit)):
            split = "test" if position % 5 == 4 else "train"
            file = directory / split / str(digit) / f"{index:04}.pgm"
            file.parent.mkdir(parents=True, exist_ok=True)
            # By hand rather than by a library whose headers may change.
            file.write_bytes(b"P5\n8 8\n255\n" + pixels[index].tobytes())


def _occupied(directory: Path) -> bool:
    return directory.exists() and (not directory.is_dir() or any(directory.iterdir()))


def _verified(directory: Path) -> ImageSet:
    try:
        image_set = folder.load(directory)
    except DataError as error:
        head = f"{directory} holds something other than the digits; move it or name another folder"
        raise DataError([head, *error.problems]) from None
    if image_set.content_hash != CONTENT_HASH:
        raise DataError(
            f"{directory} does not hold the digits: its content hash is {image_set.content_hash}, "
            f"expected {CONTENT_HASH}; move it or name another folder"
        )
    return image_set
