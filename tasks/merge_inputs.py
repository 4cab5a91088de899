"""What the configured merge rule needs beside the adapters, and nothing that it does not."""

from __future__ import annotations

from typing import Any, TypedDict

from dynammo.checkpoint import Ref
from dynammo.config import Config
from dynammo.merging import MERGE_RULES
from dynammo.merging.inputs import inputs_of
from dynammo.merging.measures import STATISTICS
from dynammo.network.network import build_network
from dynammo.seeds import derive_seed
from tasks.adapters import Trained
from tasks.support.caching import step
from tasks.support.images import Images
from tasks.support.networks import load_network
from tasks.support.workspace import CHECKPOINTS, Classes, Context, provenance, settings


class MergeInputs(TypedDict, total=False):
    """Inputs of merge rules by name (`dynammo.merging.inputs`); lists have one entry a task."""

    samples: list[int]
    base: Ref
    seed: int
    fisher: list[Ref]
    grams: list[Ref]


@step("initial adapter", "dynammo.network.network", task_run_name="initial adapter")
def initial_adapter(settings: dict[str, Any], context: Context) -> Ref:
    """The adapter that training of the first task starts from.

    Args:
        settings: sections seed, backbone, image and adapter.
        context: places.
    """
    config = Config.model_validate(settings)
    seed = derive_seed(config.seed, "adapter", 1)
    network = build_network(config.backbone, None, config.image.size, config.adapter, seed)
    return CHECKPOINTS.save("initial-adapter", network.adapter_state(), provenance(settings))


@step(
    "adapter statistics",
    "dynammo.merging.measures",
    task_run_name="adapter statistics: {kind} {context[label]}",
)
def adapter_statistics(
    settings: dict[str, Any],
    kind: str,
    classes: Classes,
    backbone: Ref,
    adapter: Ref,
    head: Ref,
    context: Context,
) -> Ref:
    """Measure a task's adapter on the task's own training images.

    Args:
        settings: sections backbone, image and adapter.
        kind: name in `dynammo.merging.measures.STATISTICS`.
        classes: the task's.
        backbone: checkpoint of the frozen network.
        adapter: checkpoint of the task's adapter.
        head: checkpoint of the head that it was trained with.
        context: places.
    """
    config = Config.model_validate(settings)
    network = load_network(config, backbone, adapter, context["device"])
    pixels, _ = Images.of(context).load("train", classes)
    measured = STATISTICS[kind](network, CHECKPOINTS.load(head), pixels)
    meta = provenance(
        settings,
        images=classes["hash"],
        backbone=backbone["sha256"],
        adapter=adapter["sha256"],
        head=head["sha256"],
    )
    return CHECKPOINTS.save(f"adapter-{kind}", measured, meta)


def merge_inputs(
    config: Config,
    before: MergeInputs | None,
    classes: Classes,
    backbone: Ref,
    trained: Trained,
    context: Context,
) -> MergeInputs:
    """The inputs of the configured rule for all tasks so far; runs the steps that make them.

    Args:
        config: the experiment.
        before: the inputs after the task before, if there is one.
        classes: the newest task's.
        backbone: checkpoint of the frozen network.
        trained: the newest task's adapter and head.
        context: places.
    """
    wanted = inputs_of(MERGE_RULES[config.merge.rule])
    old: MergeInputs = before or {}
    inputs: MergeInputs = {}
    if "samples" in wanted:
        count = len(Images.of(context).image_set.select("train", classes["names"]))
        inputs["samples"] = [*old.get("samples", []), count]
    if "base" in wanted:
        sections = settings(config, "seed", "backbone", "image", "adapter")
        inputs["base"] = old["base"] if "base" in old else initial_adapter(sections, context)
    if "seed" in wanted:
        inputs["seed"] = derive_seed(config.seed, "merge")

    def measured(kind: str) -> Ref:
        sections = settings(config, "backbone", "image", "adapter")
        adapter, head = trained["adapter"], trained["head"]
        return adapter_statistics(sections, kind, classes, backbone, adapter, head, context)

    if "fisher" in wanted:
        inputs["fisher"] = [*old.get("fisher", []), measured("fisher")]
    if "grams" in wanted:
        inputs["grams"] = [*old.get("grams", []), measured("grams")]
    return inputs
