"""What the configured merge rule needs beside the adapters, and nothing that it does not."""

from __future__ import annotations

from typing import TypedDict

from dynammo.checkpoint import Ref
from dynammo.config import AdapterConfig, ArchitectureConfig, Config, ImageConfig
from dynammo.merging import MERGE_RULES
from dynammo.merging.inputs import inputs_of
from dynammo.merging.measures import STATISTICS
from dynammo.network.network import build_network
from dynammo.seeds import derive_seed
from tasks.support.caching import step
from tasks.support.images import Images
from tasks.support.networks import load_network
from tasks.support.workspace import Classes, Context, Trained, provenance


class MergeInputs(TypedDict, total=False):
    """Inputs of merge rules by name (`dynammo.merging.inputs`); lists have one entry a task."""

    samples: list[int]
    base: Ref
    seed: int
    fisher: list[Ref]
    grams: list[Ref]


@step("initial adapter", "dynammo.network.network", task_run_name="initial adapter")
def initial_adapter(
    seed: int,
    architecture: ArchitectureConfig,
    image: ImageConfig,
    adapter: AdapterConfig,
    context: Context,
) -> Ref:
    """The adapter that training of the first task starts from.

    Args:
        seed: the experiment's.
        architecture: of the backbone.
        image: size of the images.
        adapter: kind of adapter.
        context: places.
    """
    own = derive_seed(seed, "adapter", 1)
    network = build_network(architecture, None, image.form, adapter, own)
    meta = provenance(architecture, image, adapter, config={"seed": seed})
    return context.checkpoints.save("initial-adapter", network.adapter_state(), meta)


@step(
    "adapter statistics",
    "dynammo.merging.measures",
    task_run_name="adapter statistics: {what} {context.label}",
)
def adapter_statistics(
    architecture: ArchitectureConfig,
    image: ImageConfig,
    kind: AdapterConfig,
    what: str,
    classes: Classes,
    backbone: Ref,
    adapter: Ref,
    head: Ref,
    context: Context,
) -> Ref:
    """Measure a task's adapter on the task's own training images.

    Args:
        architecture: of the backbone.
        image: size of the images.
        kind: of adapter.
        what: name in `dynammo.merging.measures.STATISTICS`.
        classes: the task's.
        backbone: checkpoint of the frozen network.
        adapter: checkpoint of the task's adapter.
        head: checkpoint of the head that it was trained with.
        context: places.
    """
    store = context.checkpoints
    network = load_network(architecture, image, kind, backbone, adapter, context)
    pixels, _ = Images.of(context).load("train", classes)
    measured = STATISTICS[what](network, store.load(head), pixels)
    meta = provenance(
        architecture,
        image,
        kind,
        images=classes["hash"],
        backbone=backbone,
        adapter=adapter,
        head=head,
    )
    return store.save(f"adapter-{what}", measured, meta)


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
    network = (config.backbone.architecture, config.image, config.adapter)
    if "samples" in wanted:
        count = len(Images.of(context).image_set.select("train", classes["names"]))
        inputs["samples"] = [*old.get("samples", []), count]
    if "base" in wanted:
        kept = old.get("base")
        inputs["base"] = kept or initial_adapter(config.seed, *network, context)
    if "seed" in wanted:
        inputs["seed"] = derive_seed(config.seed, "merge")

    def measured(what: str) -> Ref:
        parts = (trained["adapter"], trained["head"])
        return adapter_statistics(*network, what, classes, backbone, *parts, context)

    if "fisher" in wanted:
        inputs["fisher"] = [*old.get("fisher", []), measured("fisher")]
    if "grams" in wanted:
        inputs["grams"] = [*old.get("grams", []), measured("grams")]
    return inputs
