"""The images that a step can read: those of one batch, and those that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from dynammo.checkpoint import Ref
from dynammo.data.marks import COLUMN, digests, mark, read_texts, texts
from dynammo.data.samples import ImageSet, Sample, read_manifest, subset_hash
from dynammo.data.store import ImageStore
from dynammo.errors import DataError
from dynammo.state import State
from tasks.support.workspace import Classes, Context, Kept


@dataclass(frozen=True)
class Images:
    """The images of one batch, decoded, for a step to take its subset from."""

    image_set: ImageSet
    store: ImageStore

    @staticmethod
    def of(context: Context) -> Images:
        """Open what `version_batch` made."""
        return _open(context.manifest, context.images)

    def load(self, split: str, classes: Classes) -> tuple[Tensor, list[str]]:
        """One split of some classes.

        Returns:
            Images (N, 3, S, S) uint8, class by class, and their files' SHA-256.

        Raises:
            DataError: the files are not those that the hash names: the data changed during the run.
        """
        samples = self._samples(split, classes["names"])
        if subset_hash(samples) != classes["hash"]:
            raise DataError(f"the {split} images of {classes['names']} changed during the run")
        return self.store.load(samples), [sample.sha256 for sample in samples]

    def labels(self, split: str, classes: Sequence[str]) -> Tensor:
        """Class index of each image that `load` gives, (N,) int64."""
        order = {name: index for index, name in enumerate(classes)}
        return torch.tensor([order[s.label] for s in self._samples(split, classes)]).long()

    def groups(self, split: str, classes: Sequence[str]) -> list[str | None]:
        """Group of each image that `load` gives."""
        return [sample.group for sample in self._samples(split, classes)]

    def marks(self, split: str, classes: Sequence[str], key: str) -> tuple[Tensor, Tensor]:
        """Keyed hashes of each image's file and group, (N, 32) uint8; zeros without a group."""
        samples = self._samples(split, classes)
        files = [mark(key, sample.sha256) for sample in samples]
        groups = [mark(key, sample.group) for sample in samples]
        return digests(files), digests(groups)

    def columns(self, split: str, classes: Sequence[str]) -> dict[str, Tensor]:
        """Further columns of each image, (N, 32) uint8 (`dynammo.data.marks.texts`)."""
        rows = [dict(sample.columns) for sample in self._samples(split, classes)]
        names = rows[0] if rows else []
        return {f"{COLUMN}{name}": texts([row[name] for row in rows]) for name in names}

    def _samples(self, split: str, classes: Sequence[str]) -> tuple[Sample, ...]:
        # A batch may have test images of some of its classes only.
        if split == "train":
            return self.image_set.select(split, classes)
        here = {sample.label for sample in self.image_set.samples if sample.split == split}
        return self.image_set.select(split, [name for name in classes if name in here])


def remembered(memory: Ref, context: Context) -> tuple[Tensor, Tensor]:
    """The exemplars (M, 3, S, S) uint8, and their class indices in order of arrival (M,)."""
    kept = context.checkpoints.load(memory)
    counts = kept["counts"]
    return kept["images"], torch.arange(len(counts)).repeat_interleave(counts)


def kept_columns(tests: Sequence[Kept], context: Context) -> dict[str, list[str]]:
    """Further columns kept of test images, set after set: a text an image, empty where none was
    given, or where a set came before the column was kept.
    """
    found: dict[str, list[str]] = {}
    done = 0
    for test in tests:
        state = context.checkpoints.load(test["labels"])
        kept = columns_in(state)
        for name in kept.keys() - found.keys():
            found[name] = [""] * done
        done += len(state["labels"])
        for name, texts_ in found.items():
            texts_ += kept.get(name, [""] * len(state["labels"]))
    return dict(sorted(found.items()))


def columns_in(state: State) -> dict[str, list[str]]:
    """Further columns of images among their tensors, as texts."""
    return {
        name.removeprefix(COLUMN): read_texts(values)
        for name, values in state.items()
        if name.startswith(COLUMN)
    }


def targets_of(tests: Sequence[Kept], classes: Sequence[str], context: Context) -> list[Tensor]:
    """Class index in `classes` of each kept image, (N,) int64 for each set."""
    order = {name: index for index, name in enumerate(classes)}
    return [
        torch.tensor([order[name] for name in kept["names"]]).long()[
            context.checkpoints.load(kept["labels"])["labels"]
        ]
        for kept in tests
    ]


@lru_cache(maxsize=2)
def _open(manifest: str, images: str) -> Images:
    return Images(read_manifest(Path(manifest)), ImageStore.open(Path(images), verify=False))
