"""Features of images, taken once for all that needs them."""

from __future__ import annotations

import torch

from dynammo.checkpoint import Ref
from dynammo.config import AdapterConfig, ArchitectureConfig, ImageConfig
from dynammo.network.features import augmented_views, extract_features
from tasks.support.caching import step
from tasks.support.images import Images, remembered
from tasks.support.networks import load_network
from tasks.support.progress import progress_bar
from tasks.support.workspace import Classes, Context, Kept, provenance


@step("extract training features", task_run_name="extract training features: {context.label}")
def extract_training_features(
    architecture: ArchitectureConfig,
    image: ImageConfig,
    kind: AdapterConfig,
    flip: bool,
    turns: bool,
    classes: Classes,
    backbone: Ref,
    adapter: Ref | None,
    context: Context,
) -> Ref:
    """Features (V, N, D) of a task's training images, in V views.

    Args:
        architecture: of the backbone.
        image: size of the images.
        kind: of adapter.
        flip: whether the mirrored view is wanted, too.
        turns: and both turned by quarters (`dynammo.network.features.views_of`).
        classes: the task's.
        backbone: checkpoint of the frozen network.
        adapter: the merged adapter; none for the bare backbone.
        context: places.
    """
    network = load_network(architecture, image, kind, backbone, adapter, context)
    pixels, _ = Images.of(context).load("train", classes)
    meta = provenance(
        architecture,
        image,
        kind,
        config={"flip": flip, "turns": turns},
        classes=classes["names"],
        images=classes["hash"],
        backbone=backbone,
        adapter=adapter,
    )
    features = {"features": augmented_views(network, pixels, flip, turns)}
    return context.checkpoints.save("training-features", features, meta)


@step("extract memory features", task_run_name="extract memory features: {context.label}")
def extract_memory_features(
    architecture: ArchitectureConfig,
    image: ImageConfig,
    kind: AdapterConfig,
    backbone: Ref,
    adapter: Ref | None,
    memory: Ref,
    context: Context,
) -> Ref:
    """Features (1, M, D) of the exemplars, where a known class has further images.

    Args:
        architecture: of the backbone.
        image: size of the images.
        kind: of adapter.
        backbone: checkpoint of the frozen network.
        adapter: the merged adapter; none for the bare backbone.
        memory: the exemplars.
        context: places.
    """
    network = load_network(architecture, image, kind, backbone, adapter, context)
    pixels, _ = remembered(memory, context)
    features = {"features": augmented_views(network, pixels, flip=False)}
    meta = provenance(architecture, image, kind, exemplars=memory, adapter=adapter)
    return context.checkpoints.save("memory-features", features, meta)


@step("extract test features", task_run_name="extract test features: {context.label}")
def extract_test_features(
    architecture: ArchitectureConfig,
    image: ImageConfig,
    kind: AdapterConfig,
    backbone: Ref,
    adapter: Ref | None,
    tests: list[Kept],
    context: Context,
) -> Ref:
    """Features of all kept test images under one network, (N, D).

    They are taken set by set: what else is tested changes not even the last digit. A set of which
    only features are kept is left out.

    Args:
        architecture: of the backbone.
        image: size of the images.
        kind: of adapter.
        backbone: checkpoint of the frozen network.
        adapter: a task's, or a merged one; none for the bare backbone.
        tests: what `keep_images` gave, in order of arrival.
        context: places.
    """
    store = context.checkpoints
    network = load_network(architecture, image, kind, backbone, adapter, context)
    parts = [torch.zeros(0, network.feature_size)]
    with progress_bar(f"test features: {context.label}", "set") as progress:
        for number, test in enumerate(tests, start=1):
            if test["images"] is not None:
                parts.append(extract_features(network, store.load(test["images"])["images"]))
            progress(number, len(tests))
    meta = provenance(
        architecture,
        image,
        kind,
        backbone=backbone,
        adapter=adapter,
        images=[test["images"] for test in tests],
    )
    return store.save("features", {"features": torch.cat(parts)}, meta)
