"""Find nearly the same picture in train and in test: encoded again, or resized.

By imagehash's `phash`: what the lowest 16 x 16 frequencies of a picture are, above or below their
median. docs/data.md says how the two limits were found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynammo.data.formats.pictures import Pixels
from dynammo.data.samples import Sample

MOST_BITS = 16  # of 256 that may differ
MOST_DIFFERENCE = 16.0  # mean over pixels, of 255: a hash knows no colours
_SIDE = 16
_LEAST_CONTRAST = 2.0  # standard deviation; below it a hash is of noise, and the same for all
_LOOKED_AT = 20  # of drawings that differ in colour alone there may be thousands
_AT_ONCE = 200_000  # pairs, so that they stay in the processor's cache

Marks = NDArray[np.uint64]


def mark(picture: Pixels) -> Marks | None:
    """The hash of a picture (H, W, 3), 256 bits as four numbers; none of one that shows nothing."""
    grey = Image.fromarray(picture).convert("L")
    small = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32)
    if small.std() < _LEAST_CONTRAST:
        return None
    bits = imagehash.phash(grey, hash_size=_SIDE).hash
    return np.packbits(bits).view(np.uint64)


def near_repeats(
    samples: Sequence[Sample],
    marks: Mapping[str, Marks | None],
    resized: Callable[[Sample], Pixels],
    pictures: Mapping[str, str],
) -> list[str]:
    """Find test pictures that nearly are a training picture.

    Args:
        samples: to look among.
        marks: `mark` of each file, by its SHA-256.
        resized: gives a sample's picture at the size at which it is learnt.
        pictures: what identifies equal pixels: those are `dynammo.data.checks.repeats`' to tell.

    Returns:
        One line for each such test picture, naming the nearest training picture.
    """
    train, known = _marked(samples, marks, "train")
    test, asked = _marked(samples, marks, "test")
    problems: list[str] = []
    if not train or not test:
        return problems
    step = max(1, _AT_ONCE // len(train))
    for start in range(0, len(test), step):
        distances = _distances(asked[start : start + step], known)
        for row in np.flatnonzero(distances.min(axis=1) <= MOST_BITS):
            sample = test[start + row]
            alike = np.flatnonzero(distances[row] <= MOST_BITS)
            nearest = np.argsort(distances[row][alike], kind="stable")[:_LOOKED_AT]
            for index in alike[nearest]:
                other = train[index]
                same = pictures[sample.sha256] == pictures[other.sha256]
                if not same and _difference(resized(sample), resized(other)) <= MOST_DIFFERENCE:
                    files = f"{other.file} and {sample.file}"
                    problems.append(f"nearly the same picture is in train and in test: {files}")
                    break
    return problems


def _marked(
    samples: Sequence[Sample], marks: Mapping[str, Marks | None], split: str
) -> tuple[list[Sample], Marks]:
    """The samples of a split that have a mark, and their marks (N, 4)."""
    found = [
        (own, value)
        for own in samples
        if own.split == split and (value := marks[own.sha256]) is not None
    ]
    values = [value for _, value in found]
    return [own for own, _ in found], np.array(values, dtype=np.uint64)


def _distances(some: Marks, others: Marks) -> NDArray[np.uint16]:
    """Bits that differ, (N, 4) and (M, 4) -> (N, M)."""
    total = np.zeros((len(some), len(others)), dtype=np.uint16)
    for word in range(some.shape[1]):
        total += np.bitwise_count(some[:, word, None] ^ others[None, :, word])
    return total


def _difference(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one.astype(np.float32) - other.astype(np.float32)).mean())
