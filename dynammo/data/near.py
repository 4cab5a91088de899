"""Find nearly the same picture in train and in test: encoded again, or resized.

By imagehash's `phash`: what the lowest 16 x 16 frequencies of a picture are, above or below their
median. Volumes are compared slice by slice of their strips, and the limits are of the mean over
slices. benchmarks/measurements/data.md says how the two were found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynammo.data.formats.pictures import Pixels
from dynammo.data.samples import Sample

MOST_BITS = 16  # of 256 that may differ, of a slice in the mean
MOST_DIFFERENCE = 16.0  # mean over pixels, of 255: a hash knows no colours
_SIDE = 16
_WORDS = 4  # of 64 bits, in a hash
_LEAST_CONTRAST = 2.0  # standard deviation; below it a hash is of noise, and the same for all
_LOOKED_AT = 20  # of drawings that differ in colour alone there may be thousands
_AT_ONCE = 200_000  # pairs, so that they stay in the processor's cache

Marks = NDArray[np.uint64]


def mark(picture: Pixels, slices: int = 1) -> Marks | None:
    """The hash of a picture (H, W, 3), 256 bits as four numbers; none of one that shows nothing.

    Of a strip those of its slices, (4 S,), 0 for a slice that shows nothing, which no hash is.
    """
    if slices > 1:
        own = [mark(part) for part in picture.reshape(slices, -1, *picture.shape[1:])]
        if all(value is None for value in own):
            return None
        return np.concatenate([np.zeros(_WORDS, np.uint64) if v is None else v for v in own])
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

    def alike(row: int, index: int) -> bool:
        same = pictures[test[row].sha256] == pictures[train[index].sha256]
        return not same and _near(resized(test[row]), resized(train[index]))

    return [
        f"nearly the same picture is in train and in test: {train[index].file} and {test[row].file}"
        for row, index in _pairs(asked, known, alike)
    ]


def near_kept(new: Pixels, kept: Pixels) -> list[int]:
    """Find pictures that nearly are, or are, one of those that are kept of earlier batches.

    Args:
        new: pictures (N, W, W, 3), or strips (N, S * W, W, 3).
        kept: (M, W, W, 3), or strips.

    Returns:
        Rows of `new`.
    """
    (here, asked), (there, known) = (_rows_marked(pictures) for pictures in (new, kept))
    pairs = _pairs(asked, known, lambda a, b: _near(new[here[a]], kept[there[b]]))
    return [here[row] for row, _ in pairs]


def _pairs(
    asked: Marks, known: Marks, alike: Callable[[int, int], bool]
) -> Iterator[tuple[int, int]]:
    """For each of the asked (N, 4 S) that a known one (M, 4 S) is near to, and alike: both rows."""
    if not len(asked) or not len(known):
        return
    step = max(1, _AT_ONCE // len(known))
    for start in range(0, len(asked), step):
        some = asked[start : start + step]
        distances = _distances(some, known)
        # Slices that show nothing count for none; where the other shows something, all bits differ.
        most = MOST_BITS * some.reshape(len(some), -1, _WORDS).any(axis=2).sum(axis=1)
        for row in np.flatnonzero(distances.min(axis=1) <= most):
            close = np.flatnonzero(distances[row] <= most[row])
            nearest = close[np.argsort(distances[row][close], kind="stable")[:_LOOKED_AT]]
            place = start + int(row)
            index = next((own for own in map(int, nearest) if alike(place, own)), None)
            if index is not None:
                yield place, index


def _marked(
    samples: Sequence[Sample], marks: Mapping[str, Marks | None], split: str
) -> tuple[list[Sample], Marks]:
    """The samples of a split that have a mark, and their marks (N, 4 S)."""
    found = [
        (own, value)
        for own in samples
        if own.split == split and (value := marks[own.sha256]) is not None
    ]
    values = [value for _, value in found]
    return [own for own, _ in found], np.array(values, dtype=np.uint64)


def _rows_marked(pictures: Pixels) -> tuple[list[int], Marks]:
    """The rows of strips (N, S * W, W, 3) that have a mark, and their marks (M, 4 S)."""
    slices = pictures.shape[1] // pictures.shape[2]
    marked = ((row, mark(own, slices)) for row, own in enumerate(pictures))
    found = {row: value for row, value in marked if value is not None}
    return list(found), np.array(list(found.values()), dtype=np.uint64)


def _distances(some: Marks, others: Marks) -> NDArray[np.uint32]:
    """Bits that differ, (N, 4 S) and (M, 4 S) -> (N, M)."""
    total = np.zeros((len(some), len(others)), dtype=np.uint32)
    for word in range(some.shape[1]):
        total += np.bitwise_count(some[:, word, None] ^ others[None, :, word])
    return total


def _near(one: Pixels, other: Pixels) -> bool:
    difference = np.abs(one.astype(np.float32) - other.astype(np.float32)).mean()
    return bool(difference <= MOST_DIFFERENCE)
