"""Choose which images of each class are remembered."""

from __future__ import annotations

from collections.abc import Callable

import torch
from prefect import get_run_logger
from torch import Tensor

from dynammo.checkpoint import Ref
from dynammo.config import MemoryConfig
from dynammo.memory.herding import herd, quota
from dynammo.state import State
from tasks.support.caching import step
from tasks.support.images import Images
from tasks.support.workspace import Classes, Context, provenance


@step("select exemplars", task_run_name="select exemplars: {context.label}")
def select_exemplars(
    memory: MemoryConfig,
    known: list[str],
    classes: Classes,
    features: Ref,
    old_features: Ref | None,
    previous: Ref | None,
    context: Context,
) -> Ref:
    """Herd the batch's images on their features; cut the other classes' exemplars to size.

    Args:
        memory: how many.
        known: all classes, in order of arrival, the batch's new ones last.
        classes: the batch's.
        features: of its training images, the first view un-augmented.
        old_features: of the exemplars, where the batch has further images of known classes.
        previous: the memory before this batch.
        context: places.

    Returns:
        See `choose_exemplars`.
    """
    store = context.checkpoints

    def features_of(_pixels: Tensor) -> Tensor:
        return store.load(features)["features"][0]

    def old_features_of(_pixels: Tensor) -> Tensor:
        assert old_features is not None
        return store.load(old_features)["features"][0]

    return choose_exemplars(features_of, old_features_of, memory, known, classes, previous, context)


def choose_exemplars(
    features_of: Callable[[Tensor], Tensor],
    old_features_of: Callable[[Tensor], Tensor],
    memory: MemoryConfig,
    known: list[str],
    classes: Classes,
    previous: Ref | None,
    context: Context,
) -> Ref:
    """Choose and save the exemplars of all classes seen.

    Of a new class the batch's images are herded. Of a known class with further images these and
    the exemplars are, towards the mean of all its images seen, for which the exemplars stand in
    for the earlier ones. Of any other class the first exemplars stay.

    Args:
        features_of: maps images of the batch to (N, D).
        old_features_of: likewise for exemplars, asked only where a known class has further images.
        memory: how many.
        known: all classes, in order of arrival, the batch's new ones last.
        classes: the batch's.
        previous: the memory before this batch.
        context: places.

    Returns:
        A checkpoint: `images` (M, 3, S, S) uint8, class by class, the best first; `counts` (C,) of
        each class; `seen` (C,) training images of each class so far; `files` and `groups`, keyed
        hashes (M, 32).
    """
    images, store = Images.of(context), context.checkpoints
    pixels, _ = images.load("train", classes)
    labels = images.labels("train", classes["names"])
    files, groups = images.marks("train", classes["names"], context.key)
    new = {"images": pixels, "files": files, "groups": groups}
    if previous is not None:
        old = store.load(previous)
    else:
        old = {name: value[:0] for name, value in new.items()}
        old |= {"counts": torch.zeros(0).long(), "seen": torch.zeros(0).long()}
    first = len(old["counts"])
    count = quota(memory, len(known))
    starts = [0, *old["counts"].cumsum(0).tolist()]
    seen = torch.cat([old["seen"], torch.zeros(len(known) - first).long()])
    features = features_of(pixels) if count else None
    old_features = None
    chosen: list[State] = []
    for index, name in enumerate(known):
        here = slice(starts[index], starts[index + 1]) if index < first else slice(0, 0)
        kept = {part: old[part][here] for part in new}
        if name in classes["names"]:
            members = (labels == classes["names"].index(name)).nonzero().flatten()
            if features is not None:
                candidates = features[members]
                weights = None
                if held := len(kept["images"]):
                    if old_features is None:
                        old_features = old_features_of(old["images"])
                    candidates = torch.cat([old_features[here], candidates])
                    weights = torch.ones(len(candidates))
                    weights[:held] = seen[index] / held  # each stands for earlier images
                pool = {part: torch.cat([kept[part], new[part][members]]) for part in new}
                best = herd(candidates, count, weights)
                kept = {part: pool[part][best] for part in new}
            seen[index] += len(members)
        chosen.append({part: kept[part][:count] for part in new})
    tensors = {part: torch.cat([own[part] for own in chosen]) for part in new}
    counts = torch.tensor([len(own["images"]) for own in chosen]).long()
    get_run_logger().info("%d exemplars of %d classes", int(counts.sum()), len(known))
    meta = provenance(memory, classes=known, images=classes["hash"], previous=previous)
    return store.save("exemplars", {**tensors, "counts": counts, "seen": seen}, meta)
