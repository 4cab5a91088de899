"""Measure each method on the test images after each task."""

from __future__ import annotations

from typing import Any, TypedDict

import torch
from prefect import get_run_logger
from torch import Tensor, nn

from dynammo.checkpoint import Ref
from dynammo.clinical import evidence
from dynammo.config import (
    AdapterConfig,
    ArchitectureConfig,
    ClassesConfig,
    ClinicalConfig,
    ImageConfig,
)
from dynammo.evaluation import appearance
from dynammo.evaluation.metrics import Predictions, evaluate_stage
from dynammo.heads.linear import Scores, least_others_scores, unified_scores
from dynammo.heads.scaling import head_features
from dynammo.methods import METHODS
from dynammo.network.cost import count_macs, count_parameters
from dynammo.network.folding import deployed_network
from dynammo.network.network import build_network, build_unmerged_network
from dynammo.state import State
from tasks.support.caching import step
from tasks.support.images import kept_columns, targets_of
from tasks.support.workspace import Context, Kept, provenance


class Evaluated(TypedDict):
    """The metrics document of one variant after one task, and the predictions behind it, where they
    are kept.
    """

    metrics: Ref
    predictions: Ref | None


@step("evaluate", task_run_name="evaluate {variant} {context.label}")
def evaluate(
    architecture: ArchitectureConfig,
    image: ImageConfig,
    kind: AdapterConfig,
    known: ClassesConfig,
    variant: str,
    tasks: list[list[str]],
    stage: int,
    tests: list[Kept],
    features: list[Ref],
    heads: list[Ref],
    previous: Ref | None,
    context: Context,
    clinical: ClinicalConfig | None = None,
    counts: Ref | None = None,
) -> Evaluated:
    """Predict every test image as the variant would, and compute all metrics.

    Args:
        architecture: of the backbone; for the cost of a prediction, as the next two.
        image: size of the images.
        kind: of adapter.
        known: what classes belong to.
        variant: the method: merged, unmerged, frozen or another of shared features.
        tasks: class names of all tasks in order of arrival; later ones serve as unknowns.
        stage: number of tasks learnt, from 1.
        tests: the kept test images.
        features: of all test images; one entry, or one an adapter.
        heads: likewise.
        previous: the variant's predictions after the task before, for negative flips.
        context: places.
        clinical: the columns that one head's answers go by, too.
        counts: of these, if there are any.
    """
    store = context.checkpoints
    names = [name for task in tasks for name in task]
    targets = targets_of(tests, names, context)
    inputs = [store.load(ref)["features"] for ref in features]
    states = [store.load(ref) for ref in heads]
    if METHODS[variant].shared_adapters == "each":
        scores = least_others_scores(inputs, states)
    else:
        scores = kept_scores(variant, inputs[0], states[0], tests, targets, context)
        if clinical is not None and counts is not None:
            scores = _with_columns(scores, clinical, counts, tests, context)
    meta = provenance(
        architecture,
        image,
        kind,
        variant=variant,
        task=stage,
        images=[test["labels"] for test in tests],
        features=features,
        heads=heads,
        counts=counts,
    )
    weights = sum(state["weight"].numel() for state in states)
    cost = _cost(architecture, image, kind, variant, stage, weights)
    estimated = sorted({name for test in tests if not test["images"] for name in test["names"]})
    if METHODS[variant].shared_adapters and estimated:
        cost = {**cost, "estimated": estimated}
    pictures = _appearance(tests, context) if variant == "merged" else None
    return measure(
        variant,
        scores,
        torch.cat(targets),
        tasks,
        stage,
        previous,
        cost,
        meta,
        context,
        known.hierarchy,
        pictures,
    )


def _with_columns(
    scores: Scores, clinical: ClinicalConfig, counts: Ref, tests: list[Kept], context: Context
) -> Scores:
    """Answers that go by what is known beside the images (`dynammo.clinical`), too."""
    known = evidence(context.checkpoints.load_json(counts), clinical.names, clinical.weight)
    shares = torch.from_numpy(
        known.fused(scores.probabilities.double().numpy(), kept_columns(tests, context))
    )
    confidence, predicted = shares.max(dim=1)
    return Scores(predicted, shares.to(scores.probabilities), confidence, confidence)


def _appearance(tests: list[Kept], context: Context) -> Tensor | None:
    """(N, K) of all test images (`dynammo.evaluation.appearance`); none if some are not kept."""
    refs = [test["images"] for test in tests]
    kept = [context.checkpoints.load(ref)["images"] for ref in refs if ref is not None]
    if len(kept) < len(tests):
        return None
    parts = [part for images in kept for part in images.permute(0, 2, 3, 1).split(64)]
    return torch.cat([torch.from_numpy(appearance.measure(part.numpy())) for part in parts])


def kept_scores(
    variant: str,
    features: Tensor,
    head: State,
    tests: list[Kept],
    targets: list[Tensor],
    context: Context,
) -> Scores:
    """What one head over all classes says of kept test images, set after set.

    Args:
        variant: merged or frozen.
        features: (N, D) of the sets of which images are kept, as `extract_test_features` gives.
        head: the head.
        tests: the sets.
        targets: of each.
        context: places.
    """
    plain = {name: head[name] for name in ("weight", "bias")}
    sizes = [len(labels) for labels in targets]
    return unified_scores(head_inputs(variant, features, head, tests, sizes, context), plain)


def head_inputs(
    variant: str,
    features: Tensor,
    head: State,
    tests: list[Kept],
    sizes: list[int],
    context: Context,
) -> Tensor:
    """(N, D): what the head takes of kept test images, set after set.

    Args:
        variant: merged or frozen.
        features: of the sets of which images are kept.
        head: the head.
        tests: the sets.
        sizes: images of each.
        context: places.
    """
    parts, start = [], 0
    for test, size in zip(tests, sizes, strict=True):
        if test["images"] is not None:
            parts.append(head_features(features[start : start + size], head))
            start += size
        else:
            kept = context.checkpoints.load(test["features"][variant])
            parts.append(kept["features"].to(features))
    return torch.cat(parts)


def measure(
    variant: str,
    scores: Scores,
    targets: torch.Tensor,
    tasks: list[list[str]],
    stage: int,
    previous: Ref | None,
    more: dict[str, Any],
    meta: dict[str, Any],
    context: Context,
    parents: dict[str, str] | None = None,
    pictures: torch.Tensor | None = None,
) -> Evaluated:
    """Compute and save all metrics of a method's scores on the test images, for its step.

    Args:
        variant: the method.
        scores: of all test images.
        targets: (N,) their classes.
        tasks: class names of all tasks in order of arrival; later ones serve as unknowns.
        stage: number of tasks learnt, from 1.
        previous: the method's predictions after the task before, for negative flips.
        more: of the document: the cost of a prediction, `gmacs` and `parameters`.
        meta: where the predictions come from.
        context: the label, for the log.
        parents: what classes belong to, where that is known.
        pictures: (N, K) what is measured of the images' appearance, saved beside the answers.
    """
    store = context.checkpoints
    saved = {"targets": targets, **scores._asdict()}
    if pictures is not None:
        saved["appearance"] = pictures
    metrics = evaluate_stage(
        as_predictions(saved),
        tasks,
        stage,
        as_predictions(store.load(previous)) if previous else None,
        parents,
    )
    metrics |= more
    get_run_logger().info(
        "%s after %s: accuracy %.1f%%, mean class recall %.1f%%",
        variant,
        context.label,
        100 * metrics["accuracy"],
        100 * metrics["mean_class_recall"],
    )
    return {
        "metrics": store.save_json(f"metrics-{variant}", metrics),
        "predictions": store.save(f"predictions-{variant}", saved, meta),
    }


def as_predictions(saved: dict[str, torch.Tensor]) -> Predictions:
    """What `measure` saved, for the metrics."""
    return Predictions(
        targets=saved["targets"].numpy(),
        predicted=saved["predicted"].numpy(),
        scores=saved["probabilities"].numpy(),
        confidence=saved["confidence"].numpy(),
        knownness=saved["knownness"].numpy(),
    )


def _cost(
    architecture: ArchitectureConfig,
    image: ImageConfig,
    kind: AdapterConfig,
    variant: str,
    stage: int,
    head_macs: int,
) -> dict[str, Any]:
    """Giga multiply-accumulates of predicting one image, counted on the network that would do it
    (merged adapters that can be folded are not there), and the parameters that it needs. A
    head's product takes one multiply-accumulate a weight.
    """
    network: nn.Module
    chosen = (architecture, None, image.form)
    adapters = METHODS[variant].shared_adapters
    if adapters is None:
        network = build_network(*chosen)
    elif adapters == "each":
        state = build_network(*chosen, kind).adapter_state()
        network = build_unmerged_network(*chosen, kind, [state] * stage)
    else:
        network = deployed_network(*chosen, kind)
    return {
        "gmacs": (count_macs(network, image.form) + head_macs) / 1e9,
        "parameters": count_parameters(network) + head_macs,
    }
