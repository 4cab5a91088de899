"""Measure each method on the test images after each task."""

from __future__ import annotations

from typing import Any, TypedDict

import torch
from prefect import get_run_logger
from torch import nn

from dynammo.checkpoint import Ref
from dynammo.config import Config
from dynammo.evaluation.metrics import Predictions, evaluate_stage
from dynammo.heads.linear import Scores, least_others_scores, unified_scores
from dynammo.network.cost import count_macs, count_parameters
from dynammo.network.features import extract_features
from dynammo.network.folding import deployed_network
from dynammo.network.network import build_network, build_unmerged_network
from tasks.support.caching import step
from tasks.support.images import Images
from tasks.support.networks import load_network
from tasks.support.progress import progress_bar
from tasks.support.workspace import CHECKPOINTS, Classes, Context, provenance


class Evaluated(TypedDict):
    """The metrics document of one variant after one task, and the predictions behind it."""

    metrics: Ref
    predictions: Ref


@step("extract test features", task_run_name="extract test features: {context[label]}")
def extract_test_features(
    settings: dict[str, Any],
    backbone: Ref,
    adapter: Ref | None,
    tests: Classes,
    context: Context,
) -> Ref:
    """Features of all test images under one network: computed once, used after every task.

    Args:
        settings: sections backbone, image and adapter.
        backbone: checkpoint of the frozen network.
        adapter: a task's, or a merged one; none for the bare backbone.
        tests: the classes of all tasks, in order of arrival.
        context: places.
    """
    config = Config.model_validate(settings)
    network = load_network(config, backbone, adapter, context["device"])
    pixels, _ = Images.of(context).load("test", tests)
    with progress_bar(f"test features: {context['label']}", "image") as progress:
        features = extract_features(network, pixels, progress=progress)
    meta = provenance(
        settings,
        backbone=backbone["sha256"],
        adapter=adapter and adapter["sha256"],
        images=tests["hash"],
    )
    return CHECKPOINTS.save("features", {"features": features}, meta)


@step("evaluate", task_run_name="evaluate {variant} {context[label]}")
def evaluate(
    settings: dict[str, Any],
    variant: str,
    tasks: list[list[str]],
    stage: int,
    tests: Classes,
    features: list[Ref],
    heads: list[Ref],
    previous: Ref | None,
    context: Context,
) -> Evaluated:
    """Predict every test image as the variant would, and compute all metrics.

    Args:
        settings: sections backbone, image and adapter; for the cost of a prediction.
        variant: merged, unmerged or frozen.
        tasks: class names of all tasks in order of arrival; later ones serve as unknowns.
        stage: number of tasks learnt, from 1.
        tests: all classes, with the hash of their test images.
        features: of all test images; one entry, or for unmerged one a task.
        heads: likewise.
        previous: the variant's predictions after the task before, for negative flips.
        context: places.
    """
    config = Config.model_validate(settings)
    targets = Images.of(context).labels("test", tests["names"])
    inputs = [CHECKPOINTS.load(ref)["features"] for ref in features]
    states = [CHECKPOINTS.load(ref) for ref in heads]
    if variant == "unmerged":
        scores = least_others_scores(inputs, states)
    else:
        scores = unified_scores(inputs[0], states[0])
    meta = provenance(
        settings,
        variant=variant,
        task=stage,
        images=tests["hash"],
        features=[ref["sha256"] for ref in features],
        heads=[ref["sha256"] for ref in heads],
    )
    cost = _cost(config, variant, stage, sum(state["weight"].numel() for state in states))
    return measure(variant, scores, targets, tasks, stage, previous, cost, meta, context)


def measure(
    variant: str,
    scores: Scores,
    targets: torch.Tensor,
    tasks: list[list[str]],
    stage: int,
    previous: Ref | None,
    cost: dict[str, float],
    meta: dict[str, Any],
    context: Context,
) -> Evaluated:
    """Compute and save all metrics of a method's scores on the test images, for its step.

    Args:
        variant: the method.
        scores: of all test images.
        targets: (N,) their classes.
        tasks: class names of all tasks in order of arrival; later ones serve as unknowns.
        stage: number of tasks learnt, from 1.
        previous: the method's predictions after the task before, for negative flips.
        cost: of a prediction: `gmacs` and `parameters`.
        meta: where the predictions come from.
        context: the label, for the log.
    """
    saved = {"targets": targets, **scores._asdict()}
    metrics = evaluate_stage(
        _predictions(saved),
        tasks,
        stage,
        _predictions(CHECKPOINTS.load(previous)) if previous else None,
    )
    metrics |= cost
    get_run_logger().info(
        "%s after %s: accuracy %.1f%%, mean class recall %.1f%%",
        variant,
        context["label"],
        100 * metrics["accuracy"],
        100 * metrics["mean_class_recall"],
    )
    return {
        "metrics": CHECKPOINTS.save_json(f"metrics-{variant}", metrics),
        "predictions": CHECKPOINTS.save(f"predictions-{variant}", saved, meta),
    }


def _predictions(saved: dict[str, torch.Tensor]) -> Predictions:
    return Predictions(
        targets=saved["targets"].numpy(),
        predicted=saved["predicted"].numpy(),
        scores=saved["probabilities"].numpy(),
        confidence=saved["confidence"].numpy(),
        knownness=saved["knownness"].numpy(),
    )


def _cost(config: Config, variant: str, stage: int, head_macs: int) -> dict[str, float]:
    """Giga multiply-accumulates of predicting one image, counted on the network that would do it
    (merged adapters that can be folded are not there), and the parameters that it needs. A
    head's product takes one multiply-accumulate a weight.
    """
    network: nn.Module
    chosen = (config.backbone, None, config.image.size)
    if variant == "frozen":
        network = build_network(*chosen)
    elif variant == "unmerged":
        state = build_network(*chosen, config.adapter).adapter_state()
        network = build_unmerged_network(*chosen, config.adapter, [state] * stage)
    else:
        network = deployed_network(*chosen, config.adapter)
    return {
        "gmacs": (count_macs(network, config.image.size) + head_macs) / 1e9,
        "parameters": count_parameters(network) + head_macs,
    }
