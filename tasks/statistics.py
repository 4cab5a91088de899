"""Class statistics: measured when classes arrive, carried over when the merged network changes."""

from __future__ import annotations

from typing import Any

import torch
from prefect import get_run_logger
from torch import Tensor

from dynammo.checkpoint import Ref
from dynammo.config import Config
from dynammo.heads.scaling import power_normalise
from dynammo.heads.statistics import ClassStatistics, append_classes, correct_drift, measure_classes
from dynammo.network.features import mirrored_views
from dynammo.network.network import Network
from tasks.support.caching import step
from tasks.support.images import Images
from tasks.support.networks import load_network
from tasks.support.workspace import CHECKPOINTS, Classes, Context, provenance


@step("update statistics", task_run_name="update statistics: {context[label]}")
def update_statistics(
    settings: dict[str, Any],
    flip: bool,
    power: float,
    ridge: float,
    classes: Classes,
    features: Ref,
    backbone: Ref,
    adapter: Ref | None,
    before: Ref | None,
    statistics: Ref | None,
    exemplars: Ref | None,
    context: Context,
) -> Ref:
    """Measure the new classes on all their training images; carry the old classes' over.

    What merging the newest adapter did to features is seen on the images at hand: the new classes'
    and the remembered ones.

    Args:
        settings: sections backbone, image and adapter.
        flip: measure the mirrored view of each image as well.
        power: see `dynammo.heads.scaling`.
        ridge: see `dynammo.heads.statistics.correct_drift`.
        classes: the newest task's.
        features: of its training images under the network now, as `flip` says.
        backbone: checkpoint of the frozen network.
        adapter: the merged adapter now; none for the bare backbone.
        before: the merged adapter before this task.
        statistics: of the classes before this task; none with the first task.
        exemplars: the memory before this task.
        context: places.
    """
    config = Config.model_validate(settings)
    images = Images.of(context)
    now = power_normalise(CHECKPOINTS.load(features)["features"], power)
    labels = images.labels("train", classes["names"])
    result = measure_classes(now, labels, len(classes["names"]))
    if statistics is not None:
        old = ClassStatistics(**CHECKPOINTS.load(statistics))
        if adapter != before:
            network = load_network(config, backbone, adapter, context["device"])
            previous = load_network(config, backbone, before, context["device"])
            pixels, _ = images.load("train", classes)

            def seen(network: Network, pixels: Tensor) -> Tensor:
                views = mirrored_views(network, pixels, flip)
                return power_normalise(views.flatten(0, 1), power)

            was, now = seen(previous, pixels), now.flatten(0, 1)
            if exemplars is not None:
                kept, _ = images.exemplars(exemplars)
                was = torch.cat([was, seen(previous, kept)])
                now = torch.cat([now, seen(network, kept)])
            old = correct_drift(old, was, now, ridge)
        result = append_classes(old, result)
    get_run_logger().info("%d classes, %d samples", len(result.means), int(result.counts.sum()))
    meta = provenance(
        {**settings, "flip": flip, "power": power, "ridge": ridge},
        classes=classes["names"],
        images=classes["hash"],
        features=features["sha256"],
        backbone=backbone["sha256"],
        adapter=adapter and adapter["sha256"],
        before=before and before["sha256"],
        statistics=statistics and statistics["sha256"],
        exemplars=exemplars and exemplars["sha256"],
    )
    return CHECKPOINTS.save("statistics", result._asdict(), meta)
