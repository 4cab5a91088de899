"""What is known of a site's patients beside their images, as counts that may leave it.

They are `dynammo.clinical.Counts`, which add up. What too few patients have does not leave: it is
as if the cells were empty. With k patients, of each class

- values of a category that fewer than k patients have are held back, and while those held back
  are of fewer than k patients together, the next rarest is, too: else the number of images of the
  class would tell how many have the one value that is missing;
- of a number nothing is told if fewer than k patients have one; else how many images have one,
  their sum, and the sum of their squares.

What is counted are images, as a learner counts them; for k a patient counts once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch

from dynammo.clinical import Counts, count
from dynammo.config import ClinicalConfig
from dynammo.data.samples import Sample
from dynammo.data.sources.csv_manifest import LONGEST
from dynammo.errors import DataError
from dynammo.state import State

ALL = "all"  # values of a number are held back together


class SiteColumns(NamedTuple):
    """What a site tells of its columns.

    Args:
        counts: of its classes; without the columns of which nothing is told.
        fewest: of each column that is told, how many patients the smallest number is of.
        held_back: of each column and class the values that stay.
    """

    counts: Counts
    fewest: dict[str, int]
    held_back: dict[str, dict[str, list[str]]]

    @property
    def names(self) -> list[str]:
        """The columns that are told."""
        return names_in(self.counts)


def names_in(counts: Counts) -> list[str]:
    """The columns that are counted."""
    return [*counts["categories"], *counts["numbers"]]


def columns_told(
    samples: Sequence[Sample], classes: Sequence[str], clinical: ClinicalConfig, least: int
) -> SiteColumns:
    """Count what leaves a site.

    Args:
        samples: training images, with all of these columns.
        classes: theirs, in the order of the counts.
        clinical: the columns.
        least: k.

    Raises:
        DataError: a number is none.
    """
    texts = {name: [dict(own.columns)[name] for own in samples] for name in clinical.names}
    fewest: dict[str, int] = {}
    held_back: dict[str, dict[str, list[str]]] = {}
    for name, values in texts.items():
        told: list[int] = []
        for label in classes:
            kinds = {
                row: values[row] if name in clinical.categories else ALL
                for row, own in enumerate(samples)
                if own.label == label and values[row]
            }
            patients: dict[str, set[str]] = {}
            for row, kind in kinds.items():
                patients.setdefault(kind, set()).add(samples[row].group or samples[row].sha256)
            if hidden := _too_rare(patients, least):
                held_back.setdefault(name, {})[label] = hidden
            for row, kind in kinds.items():
                if kind in hidden:
                    values[row] = ""
            told += [len(own) for kind, own in patients.items() if kind not in hidden]
        if told:
            fewest[name] = min(told)
    labels = [classes.index(own.label) for own in samples]
    found = count(texts, labels, len(classes), clinical.categories, clinical.numbers)
    counts: Counts = {
        "classes": len(classes),
        "categories": {name: own for name, own in found["categories"].items() if own},
        "numbers": {name: own for name, own in found["numbers"].items() if any(own[0])},
    }
    return SiteColumns(counts, fewest, held_back)


def _too_rare(patients: Mapping[str, set[str]], least: int) -> list[str]:
    """The values that are held back, rarest first."""
    hidden: list[str] = []
    behind: set[str] = set()
    for value in sorted(patients, key=lambda own: (len(patients[own]), own)):
        if len(patients[value]) >= least and not 0 < len(behind) < least:
            break
        hidden.append(value)
        behind |= patients[value]
    return hidden


def packed(counts: Counts) -> tuple[State, dict[str, list[str]]]:
    """For a message: of each column a tensor, (V, C) int64 of a category of V values, (3, C)
    float64 of a number; and the values of each category.
    """
    values = {name: sorted(of_value) for name, of_value in counts["categories"].items()}
    categories = {
        name: torch.tensor([counts["categories"][name][value] for value in own])
        for name, own in values.items()
    }
    numbers = {
        name: torch.tensor(moments, dtype=torch.float64)
        for name, moments in counts["numbers"].items()
    }
    return {**categories, **numbers}, values


def unpacked(
    tables: State,
    values: Mapping[str, Sequence[str]],
    clinical: ClinicalConfig,
    classes: int,
    images: int,
    least: int,
) -> Counts:
    """What `packed` gave, as it was received.

    Args:
        tables: of columns.
        values: of categories.
        clinical: the columns that were asked for.
        classes: how many the site has.
        images: likewise.
        least: k.

    Raises:
        DataError: it cannot be, or a number is of fewer than k images.
    """
    asked = {
        name: ((len(values[name]), classes), torch.int64)
        for name in clinical.categories
        if name in values
    }
    asked |= {name: ((3, classes), torch.float64) for name in clinical.numbers if name in tables}
    form = {name: (tuple(own.shape), own.dtype) for name, own in tables.items()}
    if form != asked or not values.keys() <= asked.keys():
        raise DataError("counts of other columns than were asked for")
    if not all(_possible(own, values.get(name), images, least) for name, own in tables.items()):
        raise DataError("counts of columns that cannot be")
    return {
        "classes": classes,
        "categories": {
            name: dict(zip(own, tables[name].tolist(), strict=True)) for name, own in values.items()
        },
        "numbers": {name: own.tolist() for name, own in tables.items() if name in clinical.numbers},
    }


def _possible(table: torch.Tensor, values: Collection[str] | None, images: int, least: int) -> bool:
    """Whether a column can have these counts; `values` of a category."""
    seen = (table if values is not None else table[:1]).double()
    there = seen > 0
    possible = bool(table.double().isfinite().all()) and not bool(
        (seen < 0).any()
        or (seen != seen.round()).any()
        or (seen[there] < least).any()
        or seen.sum() > images
        or not there.any(1).all()
    )
    if values is not None:
        texts = [value for value in values if 0 < len(value.encode()) <= LONGEST]
        return possible and len({*texts}) == len(values) > 0
    count_, sums, squares = table
    none = count_ == 0
    return possible and not bool(
        sums[none].any()
        or squares[none].any()
        or (count_ * squares < sums**2 * (1 - 1e-9)).any()  # the mean square is the larger
    )
