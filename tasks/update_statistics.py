"""Class statistics: measured when classes arrive, carried over when the merged network changes."""

from __future__ import annotations

from typing import TypedDict

import torch
from prefect import get_run_logger
from torch import Tensor

from dynammo.checkpoint import Ref
from dynammo.config import AdapterConfig, ArchitectureConfig, ImageConfig
from dynammo.heads.drift import measure_drift
from dynammo.heads.scaling import power_normalise
from dynammo.heads.statistics import (
    ClassStatistics,
    Pooling,
    add_samples,
    measure_classes,
    pack,
)
from dynammo.network.features import augmented_views
from dynammo.network.network import Network
from tasks.support.caching import step
from tasks.support.images import Images, remembered
from tasks.support.networks import load_network
from tasks.support.workspace import Classes, Context, provenance


class Updated(TypedDict):
    """What `update_statistics` leaves.

    `statistics` of all classes; `batch`, those of the batch alone as they were measured, and
    `drift`, the map that carried the older ones over, none where nothing moved.
    """

    statistics: Ref
    batch: Ref
    drift: Ref | None


@step("update statistics", task_run_name="update statistics: {context.label}")
def update_statistics(
    architecture: ArchitectureConfig,
    image: ImageConfig,
    kind: AdapterConfig,
    flip: bool,
    power: float,
    ridge: float,
    pooling: Pooling,
    known: list[str],
    classes: Classes,
    features: Ref,
    backbone: Ref,
    adapter: Ref | None,
    before: Ref | None,
    statistics: Ref | None,
    exemplars: Ref | None,
    context: Context,
) -> Updated:
    """Measure the batch's classes on all their training images; carry the older samples' over.

    What merging the newest adapter did to features is seen on the images at hand: the batch's and
    the remembered ones.

    Args:
        architecture: of the backbone.
        image: size of the images.
        kind: of adapter.
        flip: the mirrored view of each image is among the first two views.
        power: see `dynammo.heads.scaling`.
        ridge: see `dynammo.heads.drift.measure_drift`.
        pooling: of the classes' scatter.
        known: all classes, in order of arrival, the batch's new ones last.
        classes: the batch's.
        features: of its training images under the network now, in all views.
        backbone: checkpoint of the frozen network.
        adapter: the merged adapter now; none for the bare backbone.
        before: the merged adapter before this batch.
        statistics: of the classes before this batch; none with the first.
        exemplars: the memory before this batch.
        context: places.
    """
    store, images = context.checkpoints, Images.of(context)
    now = power_normalise(store.load(features)["features"], power)
    labels = images.labels("train", classes["names"])
    batch = measure_classes(now, labels, len(classes["names"]), "classes")
    measured = batch.pooled(pooling)
    parents = {
        "classes": classes["names"],
        "images": classes["hash"],
        "features": features,
        "backbone": backbone,
        "adapter": adapter,
        "before": before,
        "statistics": statistics,
        "exemplars": exemplars,
    }
    chosen = {"flip": flip, "power": power, "ridge": ridge, "pooling": pooling}
    meta = provenance(architecture, image, kind, config=chosen, **parents)
    result, drift_ref = measured, None
    if statistics is not None:
        old = ClassStatistics.of(store.load(statistics))
        if adapter != before:
            network = load_network(architecture, image, kind, backbone, adapter, context)
            previous = load_network(architecture, image, kind, backbone, before, context)
            pixels, _ = images.load("train", classes)

            def seen(network: Network, pixels: Tensor) -> Tensor:
                views = augmented_views(network, pixels, flip)
                return power_normalise(views.flatten(0, 1), power)

            # To see what moved, two views are enough.
            was, is_now = seen(previous, pixels), now[: 1 + flip].flatten(0, 1)
            if exemplars is not None:
                kept, _ = remembered(exemplars, context)
                was = torch.cat([was, seen(previous, kept)])
                is_now = torch.cat([is_now, seen(network, kept)])
            drift = measure_drift(was, is_now, ridge)
            old = drift.statistics(old)
            drift_ref = store.save("drift", drift.state(), meta)
        owner = [known.index(name) for name in classes["names"]]
        result = add_samples(old, measured, owner)
    get_run_logger().info("%d classes, %d samples", len(result.means), int(result.counts.sum()))
    return {
        "statistics": store.save("statistics", result.state(), meta),
        "batch": store.save("batch-statistics", pack(batch), meta),
        "drift": drift_ref,
    }
