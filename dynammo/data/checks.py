"""Checks that need no decoding: what would make results on an image set mean nothing."""

from __future__ import annotations

import logging
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from dynammo.data.samples import SPLITS, ImageSet, Sample
from dynammo.errors import DataError

Repeats = Literal["refuse", "warn"]

# Columns of a table of answers (`dynammo predict`) beside one a class.
RESERVED = ("file", "label", "probability", "prediction_set", "unknown", "error")
_TIMES = 3.0  # that slices of one volume may be as far apart as those of another
_log = logging.getLogger(__name__)


def check_image_set(image_set: ImageSet, repeated: Repeats = "refuse") -> None:
    """Refuse an image set whose results would mean nothing.

    Args:
        image_set: the images.
        repeated: what to do about the same file in both splits or under two classes. "warn" is for
            published sets that have such, as CIFAR-100: altered, their results would not compare.

    Raises:
        DataError: no images; a class name that is no answer (`problems_of_names`) or `RESERVED`; a
            class in only one split; a group in both splits; the same file in both splits or under
            two classes, unless `repeated` is "warn". All problems at once.
    """
    if not image_set.samples:
        raise DataError(f"{image_set.root}: no images")
    count = Counter((sample.split, sample.label) for sample in image_set.samples)
    problems = problems_of_names(image_set.classes) + problems_of_columns(image_set.classes)
    problems += [
        f"class {name!r} has {count['train', name]} train and {count['test', name]} test images; "
        "expected some of each"
        for name in image_set.classes
        if not all(count[split, name] for split in SPLITS)
    ]
    for group, samples in _grouped(image_set.samples, lambda sample: sample.group).items():
        first = {sample.split: sample for sample in reversed(samples)}
        if len(first) > 1:
            files = " and ".join(first[split].file for split in SPLITS)
            problems.append(f"group {group!r} is in train and in test: {files}")
    problems += warn_of(repeats(image_set.samples, lambda sample: sample.sha256), repeated)
    if problems:
        raise DataError(problems)


def problems_of_names(classes: Sequence[str]) -> list[str]:
    """What makes class names unfit to be an answer, a line each.

    Two that read the same, names of nothing or with characters that show nothing or turn the text
    around, and those that a spreadsheet would take for a formula when it opens a table of answers.
    """
    problems = []
    seen: dict[str, str] = {}
    for name in classes:
        alike = unicodedata.normalize("NFKC", name)
        if not name.strip():
            problems.append(f"class name {name!r} is empty")
        elif not name.isprintable() or name != name.strip():
            problems.append(f"class name {name!r} has characters that do not show")
        elif name[0] in "=+-@":
            problems.append(f"class name {name!r} would be a formula in a spreadsheet")
        elif alike in seen:
            problems.append(f"class names {seen[alike]!r} and {name!r} cannot be told apart")
        seen.setdefault(alike, name)
    return problems


def problems_of_columns(classes: Iterable[str]) -> list[str]:
    """Class names that are those of other columns of a table of answers, a line each."""
    return [
        f"class name {name!r} is that of a column of answers ({', '.join(RESERVED)}): rename it"
        for name in classes
        if name in RESERVED
    ]


def repeats(samples: Iterable[Sample], picture: Callable[[Sample], str]) -> list[str]:
    """Find pictures that are in both splits, or under two classes of one split.

    Args:
        samples: to look among.
        picture: what identifies the picture: a hash of the file, or of its pixels.

    Returns:
        One line each, naming both files. Copies within a class and split are fine.
    """
    problems = []
    for same in _grouped(samples, picture).values():
        splits = _grouped(same, lambda sample: sample.split)
        if len(splits) > 1:
            files = " and ".join(splits[split][0].file for split in SPLITS)
            problems.append(f"the same picture is in train and in test: {files}")
        for copies in splits.values():
            first, *others = copies
            other = next((sample for sample in others if sample.label != first.label), None)
            if other:
                files = f"{first.file} ({first.label!r}) and {other.file} ({other.label!r})"
                problems.append(f"the same picture is under two classes: {files}")
    return problems


def warn_of(found: list[str], repeated: Repeats) -> list[str]:
    """What `repeats` found, as problems: all of it, or, with "warn", a line in the log and none."""
    if repeated == "refuse" or not found:
        return found
    _log.warning(
        "%d repeated pictures are kept, as data.repeats says; results mean less. The first: %s",
        len(found),
        found[0],
    )
    return []


def warn_of_spacing(spacings: Mapping[str, float]) -> None:
    """Say in the log where slices of some volumes are more than 3 times as far apart as others'.

    Every volume becomes as many slices, whatever they stand for, so that an answer may go by the
    scanner instead of by what is seen.

    Args:
        spacings: millimetres from slice to slice, by file.
    """
    if not spacings:
        return
    close, far = (chosen(spacings, key=spacings.__getitem__) for chosen in (min, max))
    if spacings[far] > _TIMES * spacings[close]:
        _log.warning(
            "slices are %g mm apart in %s and %g mm in %s, more than %g times as far: answers may "
            "go by the scanner",
            *(spacings[far], far, spacings[close], close, _TIMES),
        )


def _grouped(
    samples: Iterable[Sample], key: Callable[[Sample], str | None]
) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        if (value := key(sample)) is not None:
            groups.setdefault(value, []).append(sample)
    return groups


def finite(text: str) -> float | None:
    """The number that a text is; none where it is none, or not finite."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
