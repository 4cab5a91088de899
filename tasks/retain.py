"""Carry out what `retention` says of images."""

from __future__ import annotations

from prefect import task

from dynammo.checkpoint import Ref
from dynammo.config import RetentionConfig
from dynammo.heads.drift import Drift
from dynammo.heads.scaling import head_features
from dynammo.learner.settings import DEPLOYED
from tasks.evaluate import Evaluated
from tasks.support.stage import Learnt, Stage
from tasks.support.version import Tested, Version
from tasks.support.workspace import Context, Kept


@task(name="carry test features over", task_run_name="carry test features over: {method}")
def carry_features(tests: list[Tested], method: str, drift: Ref, context: Context) -> list[Tested]:
    """Kept features as they would be under the network now: what is measured on them is an
    estimate.

    Args:
        tests: of earlier batches; those with images are left as they are.
        method: whose network has changed.
        drift: how (`dynammo.heads.drift`).
        context: places.
    """
    store = context.checkpoints
    moved = Drift.of(store.load(drift))

    def carry(test: Tested) -> Tested:
        kept = test["kept"]
        if kept["images"] is not None or method not in kept["features"]:
            return test
        features = moved.features(store.load(kept["features"][method])["features"]).float()
        ref = store.save("test-features", {"features": features}, {"drift": drift["sha256"]})
        return {**test, "kept": {**kept, "features": {**kept["features"], method: ref}}}

    return [carry(test) for test in tests]


@task(name="reduce tests to features")
def reduce_to_features(tests: list[Tested], stage: Stage, context: Context) -> list[Tested]:
    """Test sets without their images: of each method the features that its head takes.

    Args:
        tests: all; those that have images become features.
        stage: evaluated on them.
        context: places.
    """
    store = context.checkpoints
    sets = [test for test in tests if test["kept"]["images"] is not None]
    sizes = [len(store.load(test["kept"]["labels"])["labels"]) for test in sets]
    found: list[dict[str, Ref]] = [{} for _ in sets]
    for method, learnt in stage["methods"].items():
        features = store.load(learnt["features"][0])["features"]
        features = head_features(features, store.load(learnt["heads"][0]))
        for own, part in zip(found, features.split(sizes), strict=True):
            own[method] = store.save("test-features", {"features": part}, {"method": method})
    reduced = iter(found)

    def reduce(test: Tested) -> Tested:
        if test["kept"]["images"] is None:
            return test
        kept: Kept = {**test["kept"], "images": None, "features": next(reduced)}
        return {**test, "kept": kept}

    return [reduce(test) for test in tests]


def retained(version: Version, retention: RetentionConfig, context: Context) -> Version:
    """A version with as much of its images as `retention` allows, and what follows from them."""
    stage, tests = version["stage"], version["tests"]
    if retention.test == "features" and stage["methods"][DEPLOYED]["evaluated"] is not None:
        tests = reduce_to_features(tests, stage, context)
    elif retention.test == "nothing":
        tests = []
    kept = _strip(
        stage, parts=retention.train != "nothing", predictions=retention.test != "nothing"
    )
    return {**version, "stage": kept, "tests": tests}


def _strip(stage: Stage, *, parts: bool, predictions: bool) -> Stage:
    """A stage without what was only needed while its batch was learnt.

    Args:
        stage: of the batch just learnt.
        parts: whether the batches' own statistics are kept, with which one can be forgotten.
        predictions: whether the answers to the test images are kept.
    """
    adapted = stage["adapted"]
    if adapted is not None:
        adapted = {**adapted, "trained": None, "features": None}

    def answered(evaluated: Evaluated | None) -> Evaluated | None:
        return evaluated if predictions or evaluated is None else {**evaluated, "predictions": None}

    methods: dict[str, Learnt] = {
        name: {
            **learnt,
            "features": [],
            "parts": learnt["parts"] if parts else [],
            "evaluated": answered(learnt["evaluated"]),
        }
        for name, learnt in stage["methods"].items()
    }
    found: Stage = {**stage, "adapted": adapted, "methods": methods}
    if "clinical" in stage and not parts:
        found["clinical"] = {**stage["clinical"], "parts": []}
    return found
