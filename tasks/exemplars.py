"""Choose which images of each class are remembered."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger
from torch import nn

from dynammo.checkpoint import Ref
from dynammo.config import Config, MemoryConfig
from dynammo.features import extract_features
from dynammo.memory import cut, herd, quota
from tasks.caching import step
from tasks.images import Images
from tasks.networks import load_network
from tasks.workspace import CHECKPOINTS, Classes, Context


@step("select exemplars", task_run_name="select exemplars: {context[label]}")
def select_exemplars(
    settings: dict[str, Any],
    classes: Classes,
    backbone: Ref,
    adapter: Ref | None,
    previous: Ref | None,
    context: Context,
) -> Ref:
    """Herd the new classes' images on a network's features; cut the old classes' to size.

    Args:
        settings: sections backbone, image, adapter and memory.
        classes: the newest task's.
        backbone: checkpoint of the frozen network.
        adapter: checkpoint of the merged adapter; none for the bare backbone.
        previous: the memory before this task.
        context: places.

    Returns:
        A document: `classes` in order of arrival, and for each the SHA-256 of its `images`, best
        first.
    """
    config = Config.model_validate(settings)
    network = load_network(config, backbone, adapter, context["device"])
    return choose_exemplars(network, Images.of(context), config.memory, classes, previous)


def choose_exemplars(
    network: nn.Module,
    images: Images,
    memory: MemoryConfig,
    classes: Classes,
    previous: Ref | None,
) -> Ref:
    """The document that `select_exemplars` returns, with the features of any network."""
    old = CHECKPOINTS.load_json(previous) if previous else {"classes": [], "images": []}
    names = [*old["classes"], *classes["names"]]
    count = quota(memory, len(names))
    if count == 0:
        return CHECKPOINTS.save_json("exemplars", {"classes": names, "images": [[] for _ in names]})
    pixels, hashes = images.load("train", classes)
    labels = images.labels("train", classes["names"])
    features = extract_features(network, pixels)
    chosen = []
    for label in range(len(classes["names"])):
        members = (labels == label).nonzero().flatten()
        best = members[herd(features[members], count)]
        chosen.append([hashes[index] for index in best.tolist()])
    kept = [*cut(old["images"], count), *chosen]
    get_run_logger().info("%d exemplars of %d classes", sum(map(len, kept)), len(names))
    return CHECKPOINTS.save_json("exemplars", {"classes": names, "images": kept})
