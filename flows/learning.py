"""What every flow does with a batch: learn it on top of what is known, and measure the result.

`learn_batch` is given the batch and the state before it, and nothing else: no scenario, and no
image of an earlier batch but those that the state keeps.
"""

from __future__ import annotations

from dataclasses import replace

from dynammo.checkpoint import Ref
from dynammo.config import Config
from dynammo.heads import HEAD_RULES
from dynammo.methods import METHODS
from dynammo.methods.base import is_generic
from tasks.evaluate import evaluate
from tasks.extract_features import (
    extract_memory_features,
    extract_test_features,
    extract_training_features,
)
from tasks.fit_head import fine_tune_task_heads, fit_head
from tasks.keep_images import keep_images
from tasks.learn_method import evaluate_method, learn_task, method_config, remember
from tasks.merge_adapters import merge_adapters
from tasks.merge_inputs import merge_inputs
from tasks.prepare_backbone import prepare_backbone, renormalise_backbone, weights_hash
from tasks.select_exemplars import select_exemplars
from tasks.support.stage import Adapted, Peer, Stage, Variant, known_classes
from tasks.support.workspace import Classes, Context, Kept
from tasks.train_adapter import train_adapter
from tasks.update_statistics import update_statistics
from tasks.version_data import Batch


def start(config: Config, first: Batch, context: Context) -> Ref:
    """The backbone that a learner starts with; fitted to its first batch, if that is configured."""
    own = config.backbone
    backbone = prepare_backbone(
        config.seed, own.name, own.pretrained, own.weights, weights_hash(own), context
    )
    if own.renormalise:
        backbone = renormalise_backbone(
            config.seed,
            own.architecture,
            config.image,
            own.renormalise,
            first["train"],
            backbone,
            context,
        )
    return backbone


def learn_batch(
    config: Config, batch: Batch, backbone: Ref, before: Stage | None, context: Context
) -> Stage:
    """Bring every method up to date. Merged and unmerged share the adapters.

    Args:
        config: the experiment.
        batch: new classes, further images of known ones, or both.
        backbone: checkpoint of the frozen network.
        before: the state before this batch; none for the first.
        context: the places of this batch's images.
    """
    old = known_classes(before)
    new = [name for name in batch["train"]["names"] if name not in old]
    stage: Stage = {
        "number": batch["number"],
        "tasks": [*(before["tasks"] if before else []), *([new] if new else [])],
        "adapted": None,
        "variants": {},
        "peers": {},
        "training": before["training"] if before else [],
    }
    if {"merged", "unmerged"} & set(config.methods):
        stage["adapted"] = _adapt(config, batch, backbone, before, stage, context)
    for name in config.methods:
        if is_generic(name):
            stage["peers"][name] = _learn_peer(config, name, batch, backbone, before, context)
        elif name == "unmerged":
            stage["variants"][name] = _unmerged(config, backbone, before, stage, context)
        else:
            stage["variants"][name] = _fit(config, name, batch, backbone, before, stage, context)
    if any(METHODS[name].about.memory == "all" for name in config.methods):
        kept = keep_images("train", batch["train"], context)
        stage["training"] = [*stage["training"], kept]
    return stage


def evaluate_methods(
    config: Config,
    backbone: Ref,
    stage: Stage,
    before: Stage | None,
    tests: list[Kept],
    later: list[list[str]],
    context: Context,
) -> Stage:
    """The stage with every method measured on test images.

    Args:
        config: the experiment.
        backbone: checkpoint of the frozen network.
        stage: what was learnt.
        before: the stage before, measured on the same images or the first of them; none if there
            is no such.
        tests: the test images that are at hand.
        later: classes among them that are not learnt yet, by task: the unknowns.
        context: places.
    """
    tasks = [*stage["tasks"], *later]
    network = (config.backbone.architecture, config.image, config.adapter)
    variants: dict[str, Variant] = {}
    for name, own in stage["variants"].items():
        was = before["variants"][name] if before else None
        if name == "unmerged":
            assert stage["adapted"] is not None
            done = was["features"] if was else []
            adapters = stage["adapted"]["adapters"]
            new = [
                extract_test_features(*network, backbone, adapter, tests, context.named("adapter"))
                for adapter in adapters[len(done) :]
            ]
            features, size = [*done, *new], len(adapters)
        else:
            here = context.named(name)
            features = [extract_test_features(*network, backbone, own["adapter"], tests, here)]
            size = len(stage["tasks"])
        previous = was["evaluated"] if was else None
        evaluated = evaluate(
            *network,
            name,
            tasks,
            size,
            tests,
            features,
            own["heads"],
            previous["predictions"] if previous else None,
            context,
        )
        variants[name] = {**own, "features": features, "evaluated": evaluated}
    peers: dict[str, Peer] = {}
    for name, peer in stage["peers"].items():
        bare = None
        if METHODS[name].bare:
            bare = extract_test_features(*network, backbone, None, tests, context.named(name))
        then = before["peers"][name]["evaluated"] if before else None
        evaluated = evaluate_method(
            method_config(config, name),
            tasks,
            len(stage["tasks"]),
            tests,
            backbone,
            peer["state"],
            bare,
            then["predictions"] if then else None,
            context,
        )
        peers[name] = {**peer, "evaluated": evaluated}
    return {**stage, "variants": variants, "peers": peers}


def takes_statistics(config: Config) -> bool:
    """Whether the head follows from class statistics, not from exemplars."""
    evidence: str = HEAD_RULES[config.head.rule].evidence
    return evidence == "statistics"


def _features(
    config: Config, classes: Classes, backbone: Ref, adapter: Ref | None, context: Context
) -> Ref:
    """Features of the batch's images: both views where statistics are taken of them."""
    flip = config.head.flip and takes_statistics(config)
    network = (config.backbone.architecture, config.image, config.adapter)
    return extract_training_features(*network, flip, classes, backbone, adapter, context)


def _select(
    config: Config,
    batch: Batch,
    backbone: Ref,
    adapter: Ref | None,
    features: Ref,
    previous: Ref | None,
    stage: Stage,
    before: Stage | None,
    context: Context,
) -> Ref:
    """The memory after this batch, chosen on features of the network as it is now."""
    again = set(batch["train"]["names"]) & set(known_classes(before))
    old = None
    if again and previous is not None:
        network = (config.backbone.architecture, config.image, config.adapter)
        old = extract_memory_features(*network, backbone, adapter, previous, context)
    names = known_classes(stage)
    return select_exemplars(config.memory, names, batch["train"], features, old, previous, context)


def _adapt(
    config: Config,
    batch: Batch,
    backbone: Ref,
    before: Stage | None,
    stage: Stage,
    context: Context,
) -> Adapted:
    """Train the batch's adapter, merge it with the earlier ones, and choose what is remembered.

    After the first `adapter.tasks` batches nothing is trained and the merged adapter stays.

    The exemplars are the merged network's choice for unmerged, too: every adapter has its own
    features, and what unmerged learns must not depend on whether merged is measured beside it.
    """
    last = before["adapted"] if before else None
    memory = last["exemplars"] if last else None
    classes = batch["train"]

    def use(merged: Ref) -> tuple[Ref, Ref]:
        """Features of the batch's images under the merged adapter, and the memory they choose."""
        here = context.named("merged")
        features = _features(config, classes, backbone, merged, here)
        chosen = _select(config, batch, backbone, merged, features, memory, stage, before, here)
        return features, chosen

    done = len(last["adapters"]) if last else 0
    if last and config.adapter.tasks is not None and done >= config.adapter.tasks:
        features, exemplars = use(last["merged"])
        return {**last, "trained": None, "features": features, "exemplars": exemplars}
    others = [i for i, name in enumerate(known_classes(before)) if name not in classes["names"]]
    trained = train_adapter(
        config.seed,
        config.backbone.architecture,
        config.image,
        config.adapter,
        config.train.of_adapters,
        batch["number"],
        classes,
        others,
        backbone,
        last["adapters"][-1] if last and config.adapter.init == "previous" else None,
        memory,
        context,
    )
    adapters = [*(last["adapters"] if last else []), trained["adapter"]]
    heads = [*(last["heads"] if last else []), trained["head"]]
    inputs = merge_inputs(
        config, last["inputs"] if last else None, classes, backbone, trained, context
    )
    earlier = last["merged"] if last else None
    merged = merge_adapters(config.merge, adapters, earlier, inputs, context)
    features, exemplars = use(merged)
    return {
        "trained": trained,
        "numbers": [*(last["numbers"] if last else []), batch["number"]],
        "adapters": adapters,
        "heads": heads,
        "inputs": inputs,
        "merged": merged,
        "features": features,
        "exemplars": exemplars,
    }


def _unmerged(
    config: Config, backbone: Ref, before: Stage | None, stage: Stage, context: Context
) -> Variant:
    """Fine-tune every task's head again, on the new memory."""
    adapted = stage["adapted"]
    assert adapted is not None
    earlier = before["variants"]["unmerged"]["heads"] if before else []
    heads = fine_tune_task_heads(
        config.seed,
        config.backbone.architecture,
        config.image,
        config.adapter,
        config.head,
        [len(names) for names in stage["tasks"]],
        backbone,
        adapted["adapters"],
        [*earlier, adapted["heads"][-1]],
        adapted["exemplars"],
        context,
    )
    return {
        "adapter": None,
        "heads": heads,
        "exemplars": adapted["exemplars"],
        "statistics": None,
        "parts": [],
        "features": [],
        "evaluated": None,
    }


def _fit(
    config: Config,
    name: str,
    batch: Batch,
    backbone: Ref,
    before: Stage | None,
    stage: Stage,
    context: Context,
) -> Variant:
    """Fit the head that merged or frozen puts on its features."""
    was = before["variants"][name] if before else None
    here, names, classes = context.named(name), known_classes(stage), batch["train"]
    uses_statistics = takes_statistics(config)
    if name == "merged":
        adapted = stage["adapted"]
        assert adapted is not None and adapted["features"] is not None
        adapter, task_heads = adapted["merged"], adapted["heads"]
        features: Ref = adapted["features"]
        exemplars: Ref | None = adapted["exemplars"]
    else:
        # The tasks' heads were trained on adapters' features: they are of no use to the bare ones.
        adapter, task_heads = None, []
        features = _features(config, classes, backbone, None, here)
        exemplars = None  # statistics of features that never change need none
        if not uses_statistics:
            memory = was["exemplars"] if was else None
            exemplars = _select(
                config, batch, backbone, None, features, memory, stage, before, here
            )
    network = (config.backbone.architecture, config.image, config.adapter)
    statistics, parts = None, was["parts"] if was else []
    if uses_statistics:
        updated = update_statistics(
            *network,
            config.head.flip,
            config.head.power,
            config.head.drift_ridge,
            names,
            classes,
            features,
            backbone,
            adapter,
            was["adapter"] if was else None,
            was["statistics"] if was else None,
            was["exemplars"] if was else None,
            here,
        )
        statistics = updated["statistics"]
        parts = [
            *parts,
            {
                "batch": batch["number"],
                "classes": classes["names"],
                "statistics": updated["batch"],
                "drift": updated["drift"],
            },
        ]
    head = fit_head(
        config.seed,
        *network,
        config.head,
        name,
        names,
        backbone,
        adapter,
        task_heads,
        None if uses_statistics else exemplars,
        statistics,
        classes,
        features,
        context,
    )
    return {
        "adapter": adapter,
        "heads": [head],
        "exemplars": exemplars,
        "statistics": statistics,
        "parts": parts,
        "features": [],
        "evaluated": None,
    }


def _learn_peer(
    config: Config,
    name: str,
    batch: Batch,
    backbone: Ref,
    before: Stage | None,
    context: Context,
) -> Peer:
    """One batch for one of the methods that are all learnt in the same steps."""
    was = before["peers"][name] if before else None
    method, names = METHODS[name], known_classes(before)
    learnt = learn_task(
        method_config(config, name),
        batch["number"],
        batch["train"],
        len(names),
        before["training"] if before and method.about.memory == "all" else [],
        backbone,
        was["state"] if was else None,
        was["exemplars"] if was else None,
        context,
    )
    state, exemplars = learnt["state"], None
    if method.about.memory == "exemplars":
        remembered = remember(
            method_config(config, name, "memory"),
            [*names, *batch["train"]["names"]],
            batch["train"],
            backbone,
            state,
            was["exemplars"] if was else None,
            context,
        )
        state, exemplars = remembered["state"], remembered["exemplars"]
    return {
        "state": state,
        "history": learnt["history"],
        "exemplars": exemplars,
        "evaluated": None,
    }


def at(context: Context, batch: Batch, images: str, label: str) -> Context:
    """The context in which a batch's images, and no others, can be read."""
    return replace(context, manifest=batch["manifest"], images=images, label=label)
