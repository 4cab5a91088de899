"""What a learner has seen: keyed hashes of images and groups, never the images or their names."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from dynammo.data.marks import NOBODY, digests, mark, rows
from dynammo.data.samples import Sample
from dynammo.errors import DataError
from dynammo.state import State


class Ledger(NamedTuple):
    """A row an image: `files` and `groups`, keyed hashes (N, 32) uint8; `batches` (N,) int64;
    `tested` (N,) bool.
    """

    files: Tensor
    groups: Tensor
    batches: Tensor
    tested: Tensor

    @staticmethod
    def empty() -> Ledger:
        """Of a learner that has seen nothing."""
        digests = torch.zeros(0, 32, dtype=torch.uint8)
        return Ledger(digests, digests, torch.zeros(0).long(), torch.zeros(0).bool())

    @staticmethod
    def of(samples: Iterable[Sample], batch: int, key: str) -> Ledger:
        """The rows of a batch's images."""
        listed = list(samples)
        tested = torch.tensor([sample.split == "test" for sample in listed]).bool()
        return Ledger(
            digests([mark(key, sample.sha256) for sample in listed]),
            digests([mark(key, sample.group) for sample in listed]),
            torch.full((len(listed),), batch).long(),
            tested,
        )

    def plus(self, other: Ledger) -> Ledger:
        """The rows of both."""
        return Ledger(*(torch.cat(pair) for pair in zip(self, other, strict=True)))

    def without(self, batches: Collection[int]) -> Ledger:
        """The rows of all other batches."""
        return self.where(~torch.isin(self.batches, torch.tensor(sorted(batches)).long()))

    def where(self, rows: Tensor) -> Ledger:
        """The rows of a mask (N,)."""
        return Ledger(*(part[rows] for part in self))

    def seen(self) -> tuple[dict[bytes, bool], dict[bytes, bool]]:
        """Images and groups by their keyed hash, each with whether it was a test image."""
        files = dict(zip(rows(self.files), self.tested.tolist(), strict=True))
        groups = dict(zip(rows(self.groups), self.tested.tolist(), strict=True))
        groups.pop(NOBODY, None)
        return files, groups

    def batch_of(self) -> dict[bytes, int]:
        """The batch in which each image came."""
        return dict(zip(rows(self.files), self.batches.tolist(), strict=True))

    def state(self) -> State:
        """For a checkpoint; `Ledger(**state)` is the way back."""
        return dict(self._asdict())


def check_splits(samples: Iterable[Sample], ledger: Ledger, key: str) -> None:
    """Refuse a batch that would measure on what was learnt from, or learn from what is measured on.

    Args:
        samples: of the batch.
        ledger: what was seen.
        key: under which.

    Raises:
        DataError: an image or a group was a training one and is now a test one, or the other way
            round. All of them.
    """
    files, groups = ledger.seen()
    problems = []
    for sample in samples:
        now = sample.split == "test"
        before = files.get(mark(key, sample.sha256))
        what = "this image"
        if before is None and sample.group:
            before = groups.get(mark(key, sample.group))
            what = f"another image of group {sample.group!r}"
        if before is not None and before != now:
            problems.append(f"{sample.file}: {_said(before, now, what)}")
    if problems:
        raise DataError(problems)


def _said(before: bool, now: bool, what: str) -> str:
    split = {True: "test", False: "training"}
    return (
        f"is a {split[now]} image, but {what} was a {split[before]} image in an earlier batch; "
        "measuring on what was learnt from tells nothing"
    )
