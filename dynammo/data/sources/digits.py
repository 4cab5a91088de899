"""A data set that needs no download: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from dynammo.data.samples import ImageSet
from dynammo.data.sources.about import About
from dynammo.data.sources.fetching import write_pnm, written

ABOUT = About(
    title="handwritten digits, 8 x 8 pixels; no download",
    source="scikit-learn (load_digits); https://archive.ics.uci.edu/dataset/80",
    licence="CC BY 4.0",
    size="1,442 train, 355 test",
    classes="10: 0 to 9",
    citation="E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine "
    "Learning Repository, 1998",
    protocol="none published; params.yaml: 2 classes a task, memory 200",
    layout="a folder, written by the first run",
    written=True,
)

# Of the image set that `load` writes: the same on every machine.
CONTENT_HASH = "c40f1510d54a143adef81ef079d20fdb239d267f06bd7e2fdc769275af8e4404"


def load(path: Path) -> ImageSet:
    """The digits in a folder, written there first if it is missing or empty.

    `train/<class>/NNNN.pgm` and `test/<class>/NNNN.pgm`, where NNNN is the index in
    `load_digits()`. Every fifth image of a class is a test image; no two of the 1,797 images are
    alike, so none is in both splits. Grey values v = 0..16 become (255 v + 8) // 16.

    Raises:
        DataError: the folder holds something else, or scikit-learn's digits are not those expected.
    """
    return written(path, "the digits", _write, expected=CONTENT_HASH)


def _write(directory: Path) -> None:
    data = load_digits()
    pixels = ((255 * data.images.astype(np.int64) + 8) // 16).astype(np.uint8)
    for digit in range(10):
        for position, index in enumerate(np.flatnonzero(data.target == digit)):
            split = "test" if position % 5 == 4 else "train"
            write_pnm(directory / split / str(digit) / f"{index:04}.pgm", pixels[index])
