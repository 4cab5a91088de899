"""What every flow does with a batch: learn it on top of what is known, and measure the result.

`learn_batch` is given the batch and the state before it, and nothing else: no scenario, and no
image of an earlier batch but those that the state keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prefect import get_run_logger

from dynammo.checkpoint import Ref
from dynammo.config import Config
from dynammo.errors import ConfigError
from dynammo.hierarchy import unnamed
from dynammo.methods import METHODS
from flows.methods import steps_of
from flows.methods.adapting import adapt
from flows.methods.base import Exam, Lesson
from tasks.count_columns import count_columns
from tasks.keep_images import keep_images
from tasks.prepare_backbone import prepare_backbone, renormalise_backbone, weights_hash
from tasks.support.stage import Clinical, CountedPart, Stage, known_classes
from tasks.support.workspace import Context, Kept
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


def check_hierarchy(config: Config, classes: Sequence[str]) -> None:
    """Find out whether what classes belong to is of these classes; those it does not name are told.

    Raises:
        ConfigError: a class with images is the parent of another name.
    """
    parents = config.classes.parents
    if parents is None:
        return
    child_of = {parent: name for name, parent in parents.content.items()}
    if wrong := [name for name in classes if name in child_of]:
        raise ConfigError(
            [
                f"classes.parents: {parents.file}: {name!r} is the parent of {child_of[name]!r} "
                "and a class with images; a group needs a name of its own"
                for name in wrong
            ]
        )
    if unknown := unnamed(parents.content, classes):
        get_run_logger().warning(
            "classes.parents: %s does not name %s: in no group with any other class",
            parents.file,
            ", ".join(unknown),
        )


def learn_batch(
    config: Config, batch: Batch, backbone: Ref, before: Stage | None, context: Context
) -> Stage:
    """Bring every method up to date. All that have adapters share them.

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
        "methods": {},
        "training": before["training"] if before else [],
    }
    lesson = Lesson(config, batch, backbone, before, stage, context)
    if any(METHODS[name].shared_adapters for name in config.methods):
        stage["adapted"] = adapt(lesson)
    for name in config.methods:
        stage["methods"][name] = steps_of(name).learn(lesson)
    if any(METHODS[name].about.memory == "all" for name in config.methods):
        kept = keep_images(config.image, "train", batch["train"], context)
        stage["training"] = [*stage["training"], kept]
    if config.clinical.names or (before and "clinical" in before):
        stage["clinical"] = _counted(lesson)
    return stage


def _counted(lesson: Lesson) -> Clinical:
    """What is known beside the images, the batch's included."""
    asked, was = lesson.config.clinical, lesson.before.get("clinical") if lesson.before else None
    found = count_columns(
        asked.categories,
        asked.numbers,
        lesson.known,
        lesson.classes,
        was["counts"] if was else None,
        lesson.context,
    )
    part: CountedPart = {
        "batch": lesson.batch["number"],
        "classes": lesson.classes["names"],
        "counts": found["batch"],
    }
    return {"counts": found["counts"], "parts": [*(was["parts"] if was else []), part]}


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
    learnt = len(stage["tasks"])
    counts = stage["clinical"]["counts"] if "clinical" in stage else None
    exam = Exam(config, backbone, [*stage["tasks"], *later], learnt, tests, counts, context)
    return {
        **stage,
        "methods": {
            name: steps_of(name).evaluate(own, before["methods"][name] if before else None, exam)
            for name, own in stage["methods"].items()
        },
    }


def at(context: Context, batch: Batch, images: str, label: str) -> Context:
    """The context in which a batch's images, and no others, can be read."""
    return replace(context, manifest=batch["manifest"], images=images, label=label)
