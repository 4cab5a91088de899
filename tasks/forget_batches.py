"""Take batches or classes out of what was learnt, and merge what is left again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from prefect import task

from dynammo.checkpoint import Ref
from dynammo.clinical import NO_COUNTS, Counts, add, chosen
from dynammo.config import Config
from dynammo.data.marks import rows
from dynammo.heads import HEAD_RULES
from dynammo.heads.base import Evidence
from dynammo.heads.drift import Drift, measure_drift
from dynammo.heads.scaling import power_normalise
from dynammo.heads.statistics import ClassStatistics, Pooling, add_samples, drop_classes, unpack
from dynammo.learner.folder import LearnerError
from dynammo.learner.ledger import Ledger
from dynammo.merging import MERGE_RULES
from dynammo.merging.inputs import inputs_of
from dynammo.merging.trust import scaled
from dynammo.methods import METHODS
from dynammo.network.features import augmented_views
from dynammo.state import State
from tasks.merge_adapters import merge_adapters
from tasks.support.images import remembered
from tasks.support.kept import select_exemplars
from tasks.support.networks import load_network
from tasks.support.stage import (
    Adapted,
    Clinical,
    CountedPart,
    Learnt,
    Part,
    Stage,
    known_classes,
    learnt,
)
from tasks.support.version import Version
from tasks.support.workspace import Context, provenance


class Left(NamedTuple):
    """What is left: the stage; `drifts`, by method, the map from the network before to the one now
    where it changed; and what could not be taken out, in words.
    """

    stage: Stage
    drifts: dict[str, Ref]
    remarks: list[str]


@task(name="forget batches", task_run_name="forget batches {batches}")
def forget_batches(
    config: Config,
    version: Version,
    ledger: Ledger,
    batches: list[int],
    classes: list[str],
    context: Context,
    merge: list[int] | None = None,
) -> Left:
    """A version's stage as if some batches, or some classes, had not been learnt.

    Adapters are merged again without those of the batches, statistics are added up again without
    theirs, and the head follows from these. This is exact where the network stays as it is: where
    the deployed method has no adapters or one that stays. Where it changes, the other batches'
    statistics are carried over by a drift map measured on the images that are remembered, as they
    are when a batch is learnt; and adapters that were trained from a forgotten one stay as they
    are.

    Args:
        config: of the learner.
        version: what was learnt.
        ledger: tells which batch an exemplar came with.
        batches: numbers of those to forget, which it has learnt.
        classes: to forget, of any batch.
        context: places.
        merge: the batches whose adapters are merged; default: all that are not forgotten.

    Raises:
        LearnerError: nothing would be left; a method cannot forget; the batches' own statistics
            were not kept.
    """
    stage, backbone = _whole(version), version["backbone"]
    _check_can_forget(stage)
    left = [own for own in version["batches"] if own["number"] not in batches]
    remaining = [own["number"] for own in left]
    stored = all(own["parts"] or own["statistics"] is None for own in stage["methods"].values())
    if batches and not stored:
        raise LearnerError(
            "the batches' own statistics were not kept (retention.train nothing): a batch cannot "
            "be taken out again"
        )
    held = {name for own in left for name in (*own["new"], *own["again"])}
    kept = [name for name in known_classes(stage) if name in held and name not in classes]
    if not kept:
        raise LearnerError("nothing would be left")
    remarks: list[str] = []
    together = not stored or "round" in version  # sites send the scatter of all their classes
    if classes and together and config.head.pooling == "samples":
        remarks.append("the forgotten classes' spread stays in the scatter that all classes share")
    adapted, moved = stage["adapted"], False
    if adapted is not None:
        adapted, moved, said = _without(config, adapted, batches, merge, context)
        remarks += said
        # A round that was written before sites could train in several has no count of them.
        if moved and batches and "round" in version:
            held = context.checkpoints.load_json(version["round"])
            if held.get("rounds", 1) > 1:
                remarks.append(
                    "the other sites' adapters were trained on from one that the forgotten site "
                    "had a part in, and stay as they are"
                )
    methods: dict[str, Learnt] = {}
    drifts: dict[str, Ref] = {}
    for name, method in stage["methods"].items():
        shared = adapted if METHODS[name].shared_adapters else None
        adapter = shared["merged"] if shared else None
        exemplars = _exemplars(method["exemplars"], stage, ledger, batches, kept, context)
        drift = None
        if moved and shared:
            drift = _drift(config, backbone, method["adapter"], adapter, exemplars, context)
            if drift is None:
                remarks.append("no image is remembered: the statistics left are not carried over")
            else:
                drifts[name] = drift
        methods[name] = _refit(
            config,
            method,
            adapter,
            exemplars,
            shared,
            stage,
            backbone,
            remaining,
            kept,
            drift,
            context,
        )
    if adapted is not None:
        for name, found in methods.items():
            if METHODS[name].shared_adapters and found["exemplars"]:
                adapted = {**adapted, "exemplars": found["exemplars"]}
    tasks = [own for names in stage["tasks"] if (own := [name for name in names if name in kept])]
    rest: Stage = {**stage, "tasks": tasks, "adapted": adapted, "methods": methods}
    if "clinical" in stage:
        rest["clinical"], said = _counts_left(
            stage["clinical"], stage, len(version["batches"]), remaining, kept, context
        )
        remarks += said
    return Left(rest, drifts, remarks)


def _whole(version: Version) -> Stage:
    """The stage, with shares of batches only where there is one of every batch.

    Where retention kept none for a while, the others do not add up.
    """
    stage, numbers = version["stage"], {own["number"] for own in version["batches"]}
    methods: dict[str, Learnt] = {
        name: own if numbers <= {part["batch"] for part in own["parts"]} else {**own, "parts": []}
        for name, own in stage["methods"].items()
    }
    return {**stage, "methods": methods}


def _check_can_forget(stage: Stage) -> None:
    if others := [name for name in stage["methods"] if not METHODS[name].revisable]:
        able = " and ".join(name for name in METHODS if METHODS[name].revisable)
        raise LearnerError(f"only {able} can forget; this learner has {', '.join(others)}")


def _without(
    config: Config,
    adapted: Adapted,
    batches: Sequence[int],
    merge: Sequence[int] | None,
    context: Context,
) -> tuple[Adapted, bool, list[str]]:
    """The adapters of some batches, merged again; whether the network changed; and remarks."""
    numbers = adapted["numbers"]
    if absent := sorted(set(merge or ()) - set(numbers)):
        known = ", ".join(map(str, numbers))
        raise LearnerError(f"batch {absent[0]} has no adapter; those that have: {known}")
    wanted = [n for n in numbers if n not in batches and (merge is None or n in merge)]
    if wanted == numbers and merge is None:
        return adapted, False, []
    if not wanted:
        return (
            adapted,
            False,
            [
                "the only adapter was trained on a forgotten batch, and stays: without it nothing "
                "of what the other batches taught would be right"
            ],
        )
    left = [numbers.index(number) for number in wanted]
    needed = inputs_of(MERGE_RULES[config.merge.rule]) - set(adapted["inputs"])
    if needed:
        raise LearnerError(
            f"rule {config.merge.rule} needs {', '.join(sorted(needed))}, which was not measured "
            "when the batches were there"
        )
    inputs = {
        name: [value[place] for place in left] if isinstance(value, list) else value
        for name, value in adapted["inputs"].items()
    }
    adapters = [adapted["adapters"][place] for place in left]
    merged = merge_adapters.fn(config.merge, adapters, None, inputs, context)
    whole, remarks = merged, []
    if trust := adapted.get("trust"):  # no image is held out now: it is trusted as it was
        state = scaled(context.checkpoints.load(whole), trust["scale"])
        meta = provenance(config={"scale": trust["scale"]}, merged=whole)
        merged = context.checkpoints.save("merged", state, meta)
    gone = [number for number in numbers if number in batches]
    if config.adapter.init == "previous" and gone and wanted[-1] > gone[0]:
        remarks.append("later adapters were trained from a forgotten one, and stay as they are")
    result: Adapted = {
        **adapted,
        "numbers": wanted,
        "adapters": adapters,
        "heads": [adapted["heads"][place] for place in left],
        "inputs": inputs,  # type: ignore[typeddict-item]
        "merged": merged,
    }
    if trust:
        result["trust"] = {**trust, "whole": whole}
    return result, merged != adapted["merged"], remarks


def _exemplars(
    memory: Ref | None,
    stage: Stage,
    ledger: Ledger,
    batches: Sequence[int],
    kept: list[str],
    context: Context,
) -> Ref | None:
    """The memory without the images of forgotten batches and classes."""
    if memory is None:
        return None
    store, known = context.checkpoints, known_classes(stage)
    state = store.load(memory)
    came = ledger.batch_of()
    owner = torch.arange(len(state["counts"])).repeat_interleave(state["counts"])
    rows_kept = [
        known[label] in kept and came.get(file) not in batches
        for label, file in zip(owner.tolist(), rows(state["files"]), strict=True)
    ]
    mask = torch.tensor(rows_kept, dtype=torch.bool)
    places = torch.tensor([known.index(name) for name in kept])
    return select_exemplars(memory, mask, places, store)


def _drift(
    config: Config,
    backbone: Ref,
    before: Ref | None,
    after: Ref | None,
    exemplars: Ref | None,
    context: Context,
) -> Ref | None:
    """What merging again did to features, seen on the remembered images; none without any."""
    if exemplars is None:
        return None
    pixels, _ = remembered(exemplars, context)
    if not len(pixels):
        return None
    flip = config.head.flip

    def seen(adapter: Ref | None) -> torch.Tensor:
        network = load_network(
            config.backbone.architecture, config.image, config.adapter, backbone, adapter, context
        )
        return power_normalise(
            augmented_views(network, pixels, flip).flatten(0, 1), config.head.power
        )

    drift = measure_drift(seen(before), seen(after), config.head.drift_ridge)
    meta = provenance(before=before, after=after, exemplars=exemplars)
    return context.checkpoints.save("drift", drift.state(), meta)


def _refit(
    config: Config,
    own: Learnt,
    adapter: Ref | None,
    exemplars: Ref | None,
    adapted: Adapted | None,
    stage: Stage,
    backbone: Ref,
    remaining: Sequence[int],
    kept: list[str],
    drift: Ref | None,
    context: Context,
) -> Learnt:
    """A method's head on what is left."""
    store, known = context.checkpoints, known_classes(stage)
    meta = provenance(
        config.head, adapter=adapter, statistics=own["statistics"], exemplars=exemplars
    )
    if own["statistics"] is None:  # the head is trained on exemplars
        if exemplars is None:
            raise LearnerError("no image is remembered: the head cannot be fitted again")
        pixels, labels = remembered(exemplars, context)
        network = load_network(
            config.backbone.architecture, config.image, config.adapter, backbone, adapter, context
        )
        views = augmented_views(network, pixels, config.head.flip)
        heads = [store.load(ref) for ref in adapted["heads"]] if adapted else []
        evidence = Evidence(views, labels, None, None, None, heads, config.seed)
        head: State = HEAD_RULES[config.head.rule]()(evidence, config.head)
        statistics, parts = None, []
    else:
        before = ClassStatistics.of(store.load(own["statistics"]))
        parts = [_cut(part, remaining, kept, context) for part in own["parts"]]
        if drift is not None:
            parts.append({"batch": 0, "classes": [], "statistics": None, "drift": drift})
        if parts:
            now = add_up(parts, kept, config.head.pooling, context)
        else:  # the spread of a forgotten class stays in a common scatter
            now = drop_classes(before, [known.index(name) for name in kept])
        statistics = store.save("statistics", now.state(), meta)
        again = HEAD_RULES[config.head.rule]().again
        head = again(store.load(own["heads"][0]), before, now, config.head)
    return learnt(
        adapter=adapter,
        heads=[store.save("head", head, meta)],
        exemplars=exemplars,
        statistics=statistics,
        parts=parts,
    )


def _counts_left(
    clinical: Clinical,
    stage: Stage,
    batches: int,
    remaining: Sequence[int],
    kept: Sequence[str],
    context: Context,
) -> tuple[Clinical, list[str]]:
    """What is known beside images, without forgotten batches and classes, and remarks. Exact, where
    the share of each batch is kept; of all `batches` some are `remaining`.
    """
    store, known = context.checkpoints, known_classes(stage)
    counts = everything = NO_COUNTS
    parts: list[CountedPart] = []
    for part in clinical["parts"]:
        whole: Counts = store.load_json(part["counts"])
        places = [known.index(name) for name in part["classes"]]
        everything = add(everything, whole, places, len(known))
        classes = [name for name in part["classes"] if name in kept and part["batch"] in remaining]
        if classes:
            own = chosen(whole, [part["classes"].index(name) for name in classes])
            counts = add(counts, own, [kept.index(name) for name in classes], len(kept))
            ref = store.save_json("batch-column-counts", {**own})
            parts.append(CountedPart(batch=part["batch"], classes=classes, counts=ref))
    total: Counts = store.load_json(clinical["counts"])
    remarks = []
    if _images(everything) != _images(total):  # retention kept none for a while
        counts, parts = chosen(total, [known.index(name) for name in kept]), []
        if len(remaining) < batches:
            remarks.append("what columns said of the forgotten batch stays in the counts")
    return {"counts": store.save_json("column-counts", {**counts}), "parts": parts}, remarks


def _images(counts: Counts) -> dict[str, Any]:
    """How many images are counted, of each column that has any."""
    categories = {name: own for name, own in counts["categories"].items() if own}
    return {
        **categories,
        **{name: own[0] for name, own in counts["numbers"].items() if any(own[0])},
    }


def add_up(
    parts: Sequence[Part], classes: Sequence[str], pooling: Pooling, context: Context
) -> ClassStatistics:
    """The statistics of some classes from those of the batches, each carried over by the drift maps
    of all that came after it.

    What is stored of a batch is single precision: the sum is that of `update_statistics` to 1e-6.
    """
    store, total = context.checkpoints, None
    for part in parts:
        if total is not None and part["drift"] is not None:
            total = Drift.of(store.load(part["drift"])).statistics(total)
        if part["statistics"] is None:
            continue
        own = unpack(store.load(part["statistics"])).pooled(pooling)
        if total is None:
            count, size = len(classes), own.means.shape[1]
            total = ClassStatistics(
                own.means.new_zeros(count, size),
                own.scatter.new_zeros(*([count] if pooling == "classes" else []), size, size),
                own.counts.new_zeros(count),
            )
        total = add_samples(total, own, [classes.index(name) for name in part["classes"]])
    if total is None:
        raise LearnerError("no batch's statistics are left")
    return total


def _cut(part: Part, remaining: Sequence[int], kept: Sequence[str], context: Context) -> Part:
    """A batch's share without forgotten classes; of a forgotten batch only its drift map."""
    classes = [name for name in part["classes"] if name in kept and part["batch"] in remaining]
    if classes == part["classes"] or part["statistics"] is None:
        return part
    if not classes:
        return {**part, "classes": [], "statistics": None}
    places = [part["classes"].index(name) for name in classes]
    store = context.checkpoints
    state = store.load(part["statistics"])
    rest = drop_classes(ClassStatistics.of(state), places).state()
    ref = store.save("batch-statistics", rest, provenance(statistics=part["statistics"]))
    return {**part, "classes": classes, "statistics": ref}
