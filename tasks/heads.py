"""Stage 2: one head over all classes for merged and frozen, a head a task for unmerged."""

from __future__ import annotations

from typing import Any

from dynammo.checkpoint import Ref
from dynammo.config import Config
from dynammo.heads import HEAD_RULES
from dynammo.heads.base import Evidence
from dynammo.heads.linear import fine_tune_head, task_labels
from dynammo.heads.statistics import ClassStatistics
from dynammo.network.features import mirrored_views
from dynammo.seeds import derive_seed
from tasks.support.caching import step
from tasks.support.images import Images
from tasks.support.networks import load_network
from tasks.support.workspace import CHECKPOINTS, Classes, Context, provenance


@step("fit head", task_run_name="fit head: {variant} {context[label]} ({settings[head][rule]})")
def fit_head(
    settings: dict[str, Any],
    variant: str,
    backbone: Ref,
    adapter: Ref | None,
    task_heads: list[Ref],
    exemplars: Ref | None,
    statistics: Ref | None,
    classes: Classes,
    features: Ref,
    context: Context,
) -> Ref:
    """Stage 2: one head over all seen classes, by the configured rule.

    Args:
        settings: sections seed, backbone, image, adapter and head.
        variant: "merged" or "frozen"; for the name alone.
        backbone: checkpoint of the frozen network.
        adapter: the merged adapter; none for the bare backbone.
        task_heads: heads of all adapters' training; none for the bare backbone.
        exemplars: the memory, the new classes' share included; none if the rule does not use it.
        statistics: of all seen classes; none if the rule does not use them.
        classes: the newest task's.
        features: of its training images.
        context: places.
    """
    config = Config.model_validate(settings)
    images = Images.of(context)
    kept, kept_labels, known, new, new_labels = None, None, None, None, None
    if exemplars is not None:
        pixels, kept_labels = images.exemplars(exemplars)
        network = load_network(config, backbone, adapter, context["device"])
        kept = mirrored_views(network, pixels, config.head.flip)
    if statistics is not None:
        known = ClassStatistics(**CHECKPOINTS.load(statistics))
        new = CHECKPOINTS.load(features)["features"]
        labels = images.labels("train", classes["names"])
        new_labels = labels + len(known.means) - len(classes["names"])
    heads = [CHECKPOINTS.load(head) for head in task_heads]
    evidence = Evidence(kept, kept_labels, known, new, new_labels, heads, config.seed)
    head = HEAD_RULES[config.head.rule]()(evidence, config.head)
    meta = provenance(
        settings,
        classes=classes["names"],
        images=classes["hash"],
        features=features["sha256"],
        backbone=backbone["sha256"],
        adapter=adapter and adapter["sha256"],
        task_heads=[head["sha256"] for head in task_heads],
        exemplars=exemplars and exemplars["sha256"],
        statistics=statistics and statistics["sha256"],
    )
    return CHECKPOINTS.save(f"head-{variant}", head, meta)


@step("fine-tune task heads", task_run_name="fine-tune task heads: unmerged {context[label]}")
def fine_tune_task_heads(
    settings: dict[str, Any],
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
        settings: sections seed, backbone, image, adapter and head.
        task_sizes: classes of each task so far.
        backbone: checkpoint of the frozen network.
        adapters: one a task.
        heads: one a task, as they were before this stage.
        exemplars: the memory, the new classes' share included.
        context: places.
    """
    if len(heads) == 1:
        return heads
    config = Config.model_validate(settings)
    pixels, labels = Images.of(context).exemplars(exemplars)
    tuned = []
    first = 0
    for number, (size, adapter, head) in enumerate(
        zip(task_sizes, adapters, heads, strict=True), start=1
    ):
        network = load_network(config, backbone, adapter, context["device"])
        features = mirrored_views(network, pixels, config.head.flip)
        state = fine_tune_head(
            features,
            task_labels(labels, first, size),
            CHECKPOINTS.load(head),
            config.head,
            derive_seed(config.seed, "fine-tune task", number, len(task_sizes)),
        )
        meta = provenance(
            settings,
            backbone=backbone["sha256"],
            adapter=adapter["sha256"],
            head=head["sha256"],
            exemplars=exemplars["sha256"],
        )
        tuned.append(CHECKPOINTS.save("task-head", state, meta))
        first += size
    return tuned
