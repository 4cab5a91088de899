"""Stage 2: one head over all classes for merged and frozen, a head a task for unmerged."""

from __future__ import annotations

import torch

from dynammo.checkpoint import Ref
from dynammo.config import AdapterConfig, ArchitectureConfig, HeadConfig, ImageConfig
from dynammo.heads import HEAD_RULES
from dynammo.heads.base import Evidence
from dynammo.heads.linear import fine_tune_head, task_labels
from dynammo.heads.statistics import ClassStatistics
from dynammo.network.features import augmented_views
from dynammo.seeds import derive_seed
from tasks.support.caching import step
from tasks.support.images import Images, remembered
from tasks.support.networks import load_network
from tasks.support.workspace import Classes, Context, provenance


@step("fit head", task_run_name="fit head: {variant} {context.label} ({head.rule})")
def fit_head(
    seed: int,
    architecture: ArchitectureConfig,
    image: ImageConfig,
    kind: AdapterConfig,
    head: HeadConfig,
    variant: str,
    known: list[str],
    backbone: Ref,
    adapter: Ref | None,
    task_heads: list[Ref],
    exemplars: Ref | None,
    statistics: Ref | None,
    classes: Classes,
    features: Ref,
    before: Ref | None,
    context: Context,
) -> Ref:
    """Stage 2: one head over all seen classes, by the configured rule.

    Args:
        seed: the experiment's.
        architecture: of the backbone.
        image: size of the images.
        kind: of adapter.
        head: the rule.
        variant: the method; for the name alone.
        known: all classes, in order of arrival.
        backbone: checkpoint of the frozen network.
        adapter: the merged adapter; none for the bare backbone.
        task_heads: heads of all adapters' training; none for the bare backbone.
        exemplars: the memory, the new classes' share included; none if the rule does not use it.
        statistics: of all seen classes; none if the rule does not use them.
        classes: the newest batch's.
        features: of its training images.
        before: the head before the batch; none with the first.
        context: places.
    """
    store, images = context.checkpoints, Images.of(context)
    kept, kept_labels, statistics_, new, new_labels = None, None, None, None, None
    if exemplars is not None:
        pixels, kept_labels = remembered(exemplars, context)
        network = load_network(architecture, image, kind, backbone, adapter, context)
        kept = augmented_views(network, pixels, head.flip)
    if statistics is not None:
        statistics_ = ClassStatistics.of(store.load(statistics))
        new = store.load(features)["features"]
        places = torch.tensor([known.index(name) for name in classes["names"]])
        new_labels = places[images.labels("train", classes["names"])]
    heads = [store.load(ref) for ref in task_heads]
    was = store.load(before) if before else None
    evidence = Evidence(kept, kept_labels, statistics_, new, new_labels, heads, seed, was)
    fitted = HEAD_RULES[head.rule]()(evidence, head)
    meta = provenance(
        architecture,
        image,
        kind,
        head,
        config={"seed": seed},
        classes=classes["names"],
        images=classes["hash"],
        features=features,
        backbone=backbone,
        adapter=adapter,
        task_heads=task_heads,
        exemplars=exemplars,
        statistics=statistics,
        before=before,
    )
    return store.save(f"head-{variant}", fitted, meta)


@step("fine-tune task heads", task_run_name="fine-tune task heads: unmerged {context.label}")
def fine_tune_task_heads(
    seed: int,
    architecture: ArchitectureConfig,
    image: ImageConfig,
    kind: AdapterConfig,
    head: HeadConfig,
    task_sizes: list[int],
    backbone: Ref,
    adapters: list[Ref],
    heads: list[Ref],
    exemplars: Ref,
    context: Context,
) -> list[Ref]:
    """The unmerged model's stage 2: every task's head again, on the same memory.

    Each head continues from where it was (the newest from its adapter's training) and learns its
    own task's classes against "others": the exemplars of all other tasks. With one task there are
    no others, and its head stays as trained.

    Args:
        seed: the experiment's.
        architecture: of the backbone.
        image: size of the images.
        kind: of adapter.
        head: how to train it.
        task_sizes: classes of each task so far.
        backbone: checkpoint of the frozen network.
        adapters: one a task.
        heads: one a task, as they were before this stage.
        exemplars: the memory, the new classes' share included.
        context: places.
    """
    if len(heads) == 1:
        return heads
    store = context.checkpoints
    pixels, labels = remembered(exemplars, context)
    tuned = []
    first = 0
    for number, (size, adapter, old) in enumerate(
        zip(task_sizes, adapters, heads, strict=True), start=1
    ):
        network = load_network(architecture, image, kind, backbone, adapter, context)
        state = fine_tune_head(
            augmented_views(network, pixels, head.flip),
            task_labels(labels, first, size),
            store.load(old),
            head,
            derive_seed(seed, "fine-tune task", number, len(task_sizes)),
        )
        meta = provenance(
            architecture,
            image,
            kind,
            head,
            config={"seed": seed},
            backbone=backbone,
            adapter=adapter,
            head=old,
            exemplars=exemplars,
        )
        tuned.append(store.save("task-head", state, meta))
        first += size
    return tuned
