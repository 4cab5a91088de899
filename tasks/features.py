"""Features of a task's training images, taken once for all that needs them."""

from __future__ import annotations

from typing import Any

from dynammo.checkpoint import Ref
from dynammo.config import Config
from dynammo.network.features import mirrored_views
from tasks.support.caching import step
from tasks.support.images import Images
from tasks.support.networks import load_network
from tasks.support.workspace import CHECKPOINTS, Classes, Context, provenance


@step("extract training features", task_run_name="extract training features: {context[label]}")
def extract_training_features(
    settings: dict[str, Any],
    flip: bool,
    classes: Classes,
    backbone: Ref,
    adapter: Ref | None,
    context: Context,
) -> Ref:
    """Features (V, N, D) of a task's training images, as they are and, with `flip`, mirrored.

    Args:
        settings: sections backbone, image and adapter.
        flip: whether the mirrored view is wanted, too.
        classes: the task's.
        backbone: checkpoint of the frozen network.
        adapter: the merged adapter; none for the bare backbone.
        context: places.
    """
    config = Config.model_validate(settings)
    network = load_network(config, backbone, adapter, context["device"])
    pixels, _ = Images.of(context).load("train", classes)
    meta = provenance(
        {**settings, "flip": flip},
        classes=classes["names"],
        images=classes["hash"],
        backbone=backbone["sha256"],
        adapter=adapter and adapter["sha256"],
    )
    features = {"features": mirrored_views(network, pixels, flip)}
    return CHECKPOINTS.save("training-features", features, meta)
