"""Find out on held-out images how far the merged adapter is trusted."""

from __future__ import annotations

import torch
from prefect import get_run_logger
from torch.nn.functional import linear

from dynammo.checkpoint import Ref
from dynammo.config import AdapterConfig, ArchitectureConfig, HeadConfig, ImageConfig
from dynammo.heads.discriminant import discriminant_head
from dynammo.heads.drift import measure_drift
from dynammo.heads.scaling import power_normalise
from dynammo.heads.statistics import (
    ClassStatistics,
    append_classes,
    drop_classes,
    every_fifth,
    measure_classes,
)
from dynammo.merging.trust import SCALES, Trust, answered, scaled, trusted
from dynammo.network.features import augmented_views, extract_features
from dynammo.network.network import Network
from tasks.support.caching import step
from tasks.support.images import Images, remembered
from tasks.support.networks import load_network
from tasks.support.workspace import Classes, Context, provenance


@step("trust adapter", task_run_name="trust adapter {context.label}")
def trust_adapter(
    architecture: ArchitectureConfig,
    image: ImageConfig,
    kind: AdapterConfig,
    head: HeadConfig,
    known: list[str],
    classes: Classes,
    backbone: Ref,
    merged: Ref,
    before: Ref | None,
    statistics: Ref | None,
    exemplars: Ref | None,
    earlier: Trust | None,
    context: Context,
) -> tuple[Ref, Trust]:
    """Scale the merged adapter as `dynammo.merging.trust.trusted` says of the held-out images.

    They are those of all batches so far, each counted when it came.

    At each scale the class statistics are made as `update_statistics` makes them, without the
    held-out images, and the discriminant that follows from them answers these.

    Args:
        architecture: of the backbone.
        image: size of the images.
        kind: of adapter: linear.
        head: the settings of the discriminant.
        known: the classes before the batch, in order of arrival.
        classes: the batch's.
        backbone: checkpoint of the frozen network.
        merged: the adapter to scale, trained without the held-out images.
        before: the adapter before this batch, scaled; none with the first.
        statistics: under it, of the classes known.
        exemplars: the memory before this batch.
        earlier: what was found before this batch.
        context: places.

    Returns:
        The scaled adapter, and what it follows from.
    """
    store, images = context.checkpoints, Images.of(context)
    pixels, _ = images.load("train", classes)
    names = classes["names"]
    labels = images.labels("train", names)
    held = every_fifth(labels, images.groups("train", names))
    kept = pixels[:0] if exemplars is None else remembered(exemplars, context)[0]
    shown = torch.cat([pixels[~held], kept])  # what merging did to features

    def seen(network: Network, pixels: torch.Tensor) -> torch.Tensor:
        return power_normalise(augmented_views(network, pixels, head.flip, head.turns), head.power)

    old = None if statistics is None else ClassStatistics.of(store.load(statistics))
    was = None
    if old is not None:
        # Of a class that comes again the batch's images alone are asked.
        old = drop_classes(old, [i for i, name in enumerate(known) if name not in names])
        network = load_network(architecture, image, kind, backbone, before, context)
        was = seen(network, shown).flatten(0, 1)
    network = load_network(architecture, image, kind, backbone, merged, context)
    whole, predicted = store.load(merged), []
    for scale in SCALES:
        network.load_adapter_state(scaled(whole, scale))
        now = seen(network, shown)
        own = measure_classes(now[:, : len(pixels[~held])], labels[~held], len(names), head.pooling)
        if old is not None and was is not None:
            drift = measure_drift(was, now.flatten(0, 1), head.drift_ridge)
            own = append_classes(own, drift.statistics(old))
        fitted = discriminant_head(own, head)
        test = power_normalise(extract_features(network, pixels[held]), head.power)
        predicted.append(linear(test, fitted["weight"], fitted["bias"]).argmax(1))
    answers = {
        **(earlier["answers"] if earlier else {}),
        **answered(labels[held], predicted, names),
    }
    gain = trusted(answers)
    get_run_logger().info(
        "adapters are trusted at %g: %+.1f points of mean class recall over none on %d held-out "
        "images, 95 %% interval %+.1f to %+.1f",
        gain.scale,
        100 * gain.difference,
        sum(own["images"] for own in answers.values()),
        100 * gain.low,
        100 * gain.high,
    )
    parents = {"merged": merged, "before": before, "statistics": statistics, "exemplars": exemplars}
    meta = provenance(
        architecture, image, kind, head, config={"scale": gain.scale}, backbone=backbone, **parents
    )
    adapter = store.save("merged", scaled(whole, gain.scale), meta)
    return adapter, {"scale": gain.scale, "whole": merged, "answers": answers}
