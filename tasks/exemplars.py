"""Choose which images of each class are remembered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import get_run_logger
from torch import Tensor

from dynammo.checkpoint import Ref
from dynammo.config import Config, MemoryConfig
from dynammo.memory.herding import cut, herd, quota
from tasks.support.caching import step
from tasks.support.images import Images
from tasks.support.workspace import CHECKPOINTS, Classes, Context


@step("select exemplars", task_run_name="select exemplars: {context[label]}")
def select_exemplars(
    settings: dict[str, Any],
    classes: Classes,
    features: Ref,
    previous: Ref | None,
    context: Context,
) -> Ref:
    """Herd the new classes' images on their features; cut the old classes' to size.

    Args:
        settings: section memory.
        classes: the newest task's.
        features: of its training images, the first view un-augmented.
        previous: the memory before this task.
        context: places.

    Returns:
        A document: `classes` in order of arrival, and for each the SHA-256 of its `images`, best
        first.
    """
    config = Config.model_validate(settings)

    def known(_pixels: Tensor) -> Tensor:
        return CHECKPOINTS.load(features)["features"][0]

    return choose_exemplars(known, Images.of(context), config.memory, classes, previous)


def choose_exemplars(
    features_of: Callable[[Tensor], Tensor],
    images: Images,
    memory: MemoryConfig,
    classes: Classes,
    previous: Ref | None,
) -> Ref:
    """The document that `select_exemplars` returns; `features_of` maps images to (N, D)."""
    old = CHECKPOINTS.load_json(previous) if previous else {"classes": [], "images": []}
    names = [*old["classes"], *classes["names"]]
    count = quota(memory, len(names))
    if count == 0:
        return CHECKPOINTS.save_json("exemplars", {"classes": names, "images": [[] for _ in names]})
    pixels, hashes = images.load("train", classes)
    labels = images.labels("train", classes["names"])
    features = features_of(pixels)
    chosen = []
    for label in range(len(classes["names"])):
        members = (labels == label).nonzero().flatten()
        best = members[herd(features[members], count)]
        chosen.append([hashes[index] for index in best.tolist()])
    kept = [*cut(old["images"], count), *chosen]
    get_run_logger().info("%d exemplars of %d classes", sum(map(len, kept)), len(names))
    return CHECKPOINTS.save_json("exemplars", {"classes": names, "images": kept})
