"""What is known of a patient beside the image (age, sex, site), as evidence for each class.

What values a class comes with is counted when its images are learnt; no image and no row is kept.
Counts add up, so batches may come one by one and be taken out again, a value nobody has seen
and a value that is missing say nothing, and without any the image answers alone:

    log p(c | image, v) = log p(c | image) + w * sum_k log p(v_k | c) + const

That is naive Bayes beside the network ("late fusion"). Columns are not independent, as it assumes:
with w below 1 they are believed less. Classes count as equally frequent, as they do in the head.

Of a category, with n_cv of a class's n_c values, and a prior as strong as a images:

    p(v | c) = (n_cv + a * mean over classes of n_cv / n_c) / (n_c + a)

Of a number, a normal distribution a class, its variance drawn to the mean of all classes' likewise.

A class without any value of a column, as of a site that has none, neither gains nor loses by it:
its probability stays, and the column divides what the other classes have together.

Sources: Domingos and Pazzani 1997 (naive Bayes); Kittler et al. 1998 (the product rule of fusion).
Nothing here loads more than NumPy: `dynammo predict` answers with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from dynammo.data.checks import finite
from dynammo.data.samples import ImageSet
from dynammo.data.sources.csv_manifest import read_table
from dynammo.errors import CheckpointError, DataError

PRIOR = 10.0  # images
Floats = NDArray[np.floating]
Columns = Mapping[str, Sequence[str]]  # of each column its texts, one an image; empty: missing


class Counts(TypedDict):
    """Of C classes: of each column of `categories` and each value, how many images have it; of each
    of `numbers` how many images have a value, the sum of these, and of their squares.
    """

    classes: int
    categories: dict[str, dict[str, list[int]]]
    numbers: dict[str, list[list[float]]]


def nothing(classes: int) -> Counts:
    """Counts of so many classes, of which nothing is known."""
    return {"classes": classes, "categories": {}, "numbers": {}}


NO_COUNTS = nothing(0)


def count(
    columns: Columns,
    labels: Sequence[int],
    classes: int,
    categories: Sequence[str],
    numbers: Sequence[str],
) -> Counts:
    """Count what the images of each class come with.

    Args:
        columns: of N images.
        labels: N classes in [0, classes).
        classes: C.
        categories: names of columns.
        numbers: names of columns whose texts are numbers, or empty.
    """
    found = nothing(classes)
    for name in categories:
        of_value = found["categories"].setdefault(name, {})
        for value, label in zip(columns[name], labels, strict=True):
            if value:
                of_value.setdefault(value, [0] * classes)[label] += 1
    for name in numbers:
        moments = found["numbers"].setdefault(name, [[0.0] * classes for _ in range(3)])
        for value, label in zip(columns[name], labels, strict=True):
            if value:
                for power, row in enumerate(moments):
                    row[label] += number(value) ** power
    return found


def add(old: Counts, new: Counts, owner: Sequence[int], classes: int) -> Counts:
    """Counts of both.

    Args:
        old: of the first classes.
        new: of further images.
        owner: of each of its classes, the place among all.
        classes: how many there are then.
    """
    both = nothing(classes)
    for part, places in ((old, range(old["classes"])), (new, owner)):
        for name, of_value in part["categories"].items():
            for value, counts in of_value.items():
                whole = both["categories"].setdefault(name, {}).setdefault(value, [0] * classes)
                for place, images in zip(places, counts, strict=True):
                    whole[place] += images
        for name, moments in part["numbers"].items():
            sums = both["numbers"].setdefault(name, [[0.0] * classes for _ in range(3)])
            for row, more in zip(sums, moments, strict=True):
                for place, value_ in zip(places, more, strict=True):
                    row[place] += value_
    return both


def chosen(counts: Counts, places: Sequence[int]) -> Counts:
    """Counts of some classes, in a new order. A value that none of them has is gone."""
    taken = {
        name: {value: [own[place] for place in places] for value, own in of_value.items()}
        for name, of_value in counts["categories"].items()
    }
    return {
        "classes": len(places),
        "categories": {
            name: {value: own for value, own in of_value.items() if any(own)}
            for name, of_value in taken.items()
        },
        "numbers": {
            name: [[row[place] for place in places] for row in moments]
            for name, moments in counts["numbers"].items()
        },
    }


class Evidence(NamedTuple):
    """What values say of C classes.

    Args:
        weight: w above.
        categories: of each column and value (C,), log p(v | c).
        numbers: of each column the means and the variances, (C,) each.
        uncounted: of columns the classes without a value, whose numbers above say nothing.
    """

    weight: float
    categories: Mapping[str, Mapping[str, Sequence[float]]]
    numbers: Mapping[str, Sequence[Sequence[float]]]
    uncounted: Mapping[str, Sequence[int]] = MappingProxyType({})

    @classmethod
    def read(cls, document: Any, classes: int) -> Evidence:
        """What `model.json` says, for that many classes.

        Raises:
            CheckpointError: it is no such thing.
        """
        try:
            found = cls(**document)
            rows = [own for of_value in found.categories.values() for own in of_value.values()]
            of_numbers = [np.array(pair, float) for pair in found.numbers.values()]
            of_values = [np.array(row, float) for row in rows]
            whole = all(own.shape == (2, classes) and (own[1] > 0).all() for own in of_numbers)
            whole &= all(own.shape == (classes,) for own in of_values)
            whole &= found.uncounted.keys() <= {*found.names}
            places = [own for own in found.uncounted.values() if not {*own} < {*range(classes)}]
            finite = all(np.isfinite(own).all() for own in [*of_numbers, *of_values])
            if whole and finite and not places and 0 < found.weight <= 1:
                return found
        except (TypeError, ValueError, AttributeError):
            pass
        raise CheckpointError("clinical: expected a weight, categories and numbers of each class")

    @property
    def names(self) -> list[str]:
        """The columns."""
        return [*self.categories, *self.numbers]

    def logs(self, columns: Columns, images: int, classes: int) -> Floats:
        """(N, C): w * sum over columns of log p(v | c); 0 where nothing is known.

        Args:
            columns: of `images` images; those that are not asked for are not looked at.
            images: N.
            classes: C.

        Raises:
            DataError: a number is none.
        """
        total = np.zeros((images, classes))
        for name, of_value in self.categories.items():
            for row, value in enumerate(columns.get(name, ())):
                if value in of_value:
                    total[row] += of_value[value]
        for name, (means, variances) in self.numbers.items():
            mean, variance = np.array(means), np.array(variances)
            for row, value in enumerate(columns.get(name, ())):
                if value:
                    gap = number(value, name) - mean
                    total[row] -= 0.5 * (gap**2 / variance + np.log(variance))
        return self.weight * total

    def fused(self, probabilities: Floats, columns: Columns) -> Floats:
        """(N, C): the image's probabilities (N, C) with what the columns say.

        Raises:
            DataError: a number is none.
        """
        found: Floats = np.array(probabilities, dtype=float)
        images, classes = found.shape
        for uncounted, names in self._alike():
            counted = [place for place in range(classes) if place not in uncounted]
            shares = found[:, counted]
            own = {name: columns[name] for name in names if name in columns}
            with np.errstate(divide="ignore"):  # a probability may be 0
                logits = np.log(shares) + self.logs(own, images, classes)[:, counted]
            top = logits.max(axis=1, keepdims=True)
            raised = np.exp(logits - np.where(np.isfinite(top), top, 0))
            whole = raised.sum(axis=1, keepdims=True)
            parts = np.divide(raised, whole, out=raised, where=whole > 0)
            found[:, counted] = parts * shares.sum(axis=1, keepdims=True)
        found /= found.sum(axis=1, keepdims=True)
        return found

    def _alike(self) -> list[tuple[tuple[int, ...], list[str]]]:
        """Columns by the classes without a value in them. Those with the fewest such come first: a
        column tells nothing of these classes beside what the columns before have told.
        """
        alike: dict[tuple[int, ...], list[str]] = {}
        for name in self.names:
            alike.setdefault(tuple(sorted(self.uncounted.get(name, ()))), []).append(name)
        return sorted(alike.items(), key=lambda own: (len(own[0]), own[0]))


def evidence(counts: Counts, names: Sequence[str], weight: float) -> Evidence:
    """What the counts say.

    Args:
        counts: of all classes.
        names: the columns to go by.
        weight: w above.
    """
    categories = {
        name: _categories(of_value)
        for name, of_value in counts["categories"].items()
        if name in names and of_value
    }
    numbers = {
        name: own
        for name, moments in counts["numbers"].items()
        if name in names and (own := _numbers(moments))
    }
    images = {name: np.sum([*counts["categories"][name].values()], axis=0) for name in categories}
    images |= {name: np.array(counts["numbers"][name][0]) for name in numbers}
    return Evidence(
        weight,
        categories,
        numbers,
        {name: np.flatnonzero(own == 0).tolist() for name, own in images.items() if not own.all()},
    )


def read_rows(path: Path, known: Evidence) -> dict[Path, dict[str, str]]:
    """What a CSV says of images: by file the columns that a model goes by, as far as it has them.

    Args:
        path: a CSV with the column `file`, relative to its folder.
        known: what the model goes by.

    Raises:
        DataError: the file cannot be read or names no files, lists an image twice, or a number is
            none. All problems at once.
    """
    header, rows = read_table(path)
    names = [name for name in known.names if name in header]
    if "file" not in header:
        raise DataError(f"{path} line 1: expected the column file, got {','.join(header)}")
    found: dict[Path, dict[str, str]] = {}
    problems = []
    for line, row in rows:
        file = (path.parent / row["file"].strip()).absolute()
        own = {name: row[name].strip() for name in names}
        if file in found:
            problems.append(f"{path} line {line}: {row['file']} is listed already")
        for name in known.numbers:
            try:
                if own.get(name):
                    number(own[name], name)
            except DataError as error:
                problems.append(f"{path} line {line}: {error}")
        found[file] = own
    if problems:
        raise DataError(problems)
    return found


def number(text: str, name: str = "a column") -> float:
    """A finite number.

    Raises:
        DataError: it is none.
    """
    if (value := finite(text)) is None:
        raise DataError(f"{name}: {text!r} is no number")
    return value


def check_numbers(path: Path, listed: ImageSet, names: Sequence[str]) -> None:
    """Raises `DataError`: values of these columns that are no numbers."""
    problems = []
    for sample in listed.samples:
        for name, value in sample.columns:
            if name in names and value:
                try:
                    number(value, name)
                except DataError as error:
                    problems.append(f"{path}: {sample.file}: {error}")
    if problems:
        raise DataError(problems)


def _categories(of_value: Mapping[str, Sequence[int]]) -> dict[str, list[float]]:
    images = np.array([*of_value.values()], dtype=float)  # (V, C)
    of_class = images.sum(axis=0)
    seen = of_class > 0
    mean = (images[:, seen] / of_class[seen]).mean(axis=1, keepdims=True)
    logs = np.log((images + PRIOR * mean) / (of_class + PRIOR))
    return dict(zip(of_value, logs.tolist(), strict=True))


def _numbers(moments: Sequence[Sequence[float]]) -> list[list[float]] | None:
    """Means and variances; none where there are no two values."""
    images, sums, squares = np.array(moments)
    seen = images > 0
    if not seen.any():
        return None
    means = np.divide(sums, images, out=np.zeros_like(sums), where=seen)
    scatter = np.maximum(squares - images * means**2, 0)
    within = (scatter[seen] / images[seen]).mean()
    between = means[seen].var()
    if within + between <= 0:
        return None  # one value, which says nothing
    within = max(within, 1e-3 * between)  # a class whose images all have one value
    variances = (scatter + PRIOR * within) / (images + PRIOR)
    return [means.tolist(), variances.tolist()]
