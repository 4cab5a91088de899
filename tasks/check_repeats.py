"""Look for a batch's pictures among those that are kept of earlier batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from prefect import task

from dynammo.checkpoint import Ref
from dynammo.data.checks import Repeats, warn_of
from dynammo.data.near import near_kept
from dynammo.errors import DataError
from tasks.support.images import Images
from tasks.support.stage import Stage
from tasks.support.version import Tested
from tasks.support.workspace import Context

_OTHER = {"train": "test", "test": "train"}


@task(name="check repeats", task_run_name="check repeats {context.label}")
def check_repeats(tests: list[Tested], before: Stage, repeated: Repeats, context: Context) -> None:
    """Refuse pictures that were of the other split before, encoded again or resized since.

    The same files are known by their keyed hashes (`dynammo.learner.ledger`); others only by the
    pictures that are still kept: exemplars, training and test images.

    Args:
        tests: of earlier batches.
        before: what was learnt, with what is remembered.
        repeated: whether to refuse or to warn.
        context: in which the batch's images can be read.

    Raises:
        DataError: there are such pictures. All of them at once.
    """
    images, store = Images.of(context), context.checkpoints
    kept = {
        "train": {ref["path"]: ref for ref in _trained(before)},  # methods may share exemplars
        "test": {ref["path"]: ref for own in tests if (ref := own["kept"]["images"])},
    }
    found = []
    for split, other in _OTHER.items():
        samples = [own for own in images.image_set.samples if own.split == split]
        if not samples or not kept[other]:
            continue
        new = images.store.load(samples).permute(0, 2, 3, 1).numpy()
        old = torch.cat([store.load(ref)["images"] for ref in kept[other].values()])
        found += [
            f"nearly the same picture was a {other} image of an earlier batch: {samples[row].file}"
            for row in near_kept(new, old.permute(0, 2, 3, 1).numpy())
        ]
    if problems := warn_of(found, repeated):
        raise DataError(problems)


def _trained(stage: Stage) -> Iterator[Ref]:
    for own in stage["methods"].values():
        if own["exemplars"] is not None:
            yield own["exemplars"]
    for kept in stage["training"]:
        if kept["images"] is not None:
            yield kept["images"]
