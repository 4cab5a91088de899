"""The images of a run, as its steps take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from dynammo.checkpoint import Ref
from dynammo.data.samples import ImageSet, read_manifest, subset_hash
from dynammo.data.store import ImageStore
from dynammo.errors import DataError
from tasks.support.workspace import CHECKPOINTS, Classes, Context


@dataclass(frozen=True)
class Images:
    """The images of a run, decoded, for one step to take its subset from."""

    image_set: ImageSet
    store: ImageStore

    @staticmethod
    def of(context: Context) -> Images:
        """Open what `version_data` and `prepare_images` made."""
        return _open(context["manifest"], context["images"])

    def load(self, split: str, classes: Classes) -> tuple[Tensor, list[str]]:
        """One split of some classes.

        Returns:
            Images (N, 3, S, S) uint8, class by class, and their files' SHA-256.

        Raises:
            DataError: the files are not those that the hash names: the data changed during the run.
        """
        samples = self.image_set.select(split, classes["names"])
        if subset_hash(samples) != classes["hash"]:
            raise DataError(f"the {split} images of {classes['names']} changed during the run")
        return self.store.load(samples), [sample.sha256 for sample in samples]

    def labels(self, split: str, classes: Sequence[str]) -> Tensor:
        """Class index of each image that `load` gives, (N,) int64."""
        order = {name: index for index, name in enumerate(classes)}
        return torch.tensor([order[s.label] for s in self.image_set.select(split, classes)])

    def exemplars(self, memory: Ref) -> tuple[Tensor, Tensor]:
        """The remembered images (N, 3, S, S) uint8, and their class indices in order of arrival
        (N,).
        """
        kept: list[list[str]] = CHECKPOINTS.load_json(memory)["images"]
        known = {sample.sha256: sample for sample in self.image_set.samples}
        pixels = self.store.load([known[digest] for digests in kept for digest in digests])
        counts = torch.tensor([len(digests) for digests in kept])
        return pixels, torch.arange(len(kept)).repeat_interleave(counts)


@lru_cache(maxsize=1)
def _open(manifest: str, images: str) -> Images:
    return Images(read_manifest(Path(manifest)), ImageStore.open(Path(images), verify=False))
