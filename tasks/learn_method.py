"""The steps of every method that is learnt through `dynammo.methods.base.Method`."""

from __future__ import annotations

from functools import partial
from typing import TypedDict

import torch
from prefect import get_run_logger

from dynammo.checkpoint import Ref
from dynammo.config import BackboneConfig, Config
from dynammo.methods import METHODS
from dynammo.methods.base import Method, Task, TaskImages, Watch, create_method
from dynammo.network.cost import count_macs, count_parameters
from dynammo.network.features import extract_features
from tasks.evaluate import Evaluated, measure
from tasks.select_exemplars import choose_exemplars
from tasks.support.caching import step
from tasks.support.images import Images, remembered, targets_of
from tasks.support.progress import epoch_lines, progress_bar
from tasks.support.workspace import Classes, Context, Kept, provenance


class LearntTask(TypedDict):
    """A method's state after a task, and (loss, accuracy) of each epoch."""

    state: Ref
    history: list[list[float]]


class Remembered(TypedDict):
    """The memory after a task, and the method's state once it has seen it."""

    exemplars: Ref
    state: Ref


def method_config(config: Config, name: str, *sections: str) -> Config:
    """What a method's result depends on, as a configuration of this method alone.

    Args:
        config: the experiment.
        name: of the method.
        sections: further ones, beside those that the method itself names.
    """
    method = METHODS[name]
    train = config.train.of_adapters
    if method.trains_network:
        train = config.train.of_networks
    own = config.model_copy(
        update={
            "methods": [name],
            "method_options": {name: config.method_options.get(name, {})},
            "train": train,
            "backbone": BackboneConfig(**config.backbone.architecture.model_dump()),
        }
    )
    wanted = ("seed", "backbone", "image", *method.sections, *sections)
    return own.only("methods", "method_options", *wanted)


@step("learn task", task_run_name="learn {config.methods[0]} {context.label}")
def learn_task(
    config: Config,
    number: int,
    classes: Classes,
    known: int,
    earlier: list[Kept],
    backbone: Ref,
    state: Ref | None,
    exemplars: Ref | None,
    context: Context,
) -> LearntTask:
    """One task's classes, learnt on top of the method's state after the task before.

    Args:
        config: as `method_config` gives it.
        number: of the task, from 1.
        classes: the task's.
        known: number of classes learnt before it.
        earlier: all training images of the tasks before, for a method that needs them.
        backbone: checkpoint of the pretrained network.
        state: the method's after the task before; none for the first.
        exemplars: the memory after the task before; none where the method has none.
        context: places.
    """
    logger = get_run_logger()
    name, method = _load(config, backbone, state, context)
    images = Images.of(context)
    new = _images(images, classes, known)
    old = TaskImages(new.images[:0], new.labels[:0])
    first = 0
    for kept in earlier:
        (labels,) = targets_of([kept], kept["names"], context)
        assert kept["images"] is not None
        pixels = context.checkpoints.load(kept["images"])["images"]
        old = old.with_(TaskImages(pixels, first + labels))
        first += len(kept["names"])
    if exemplars is not None:
        old = TaskImages(*remembered(exemplars, context))
    logger.info(
        "%s: %d images of %s, %d of earlier classes",
        name,
        len(new.labels),
        ", ".join(classes["names"]),
        len(old.labels),
    )

    with progress_bar(f"learn {name} {context.label}", "batch") as progress:
        task = Task(number, known, known + len(classes["names"]), new, old)
        epochs = config.train.epochs if "train" in config.model_fields_set else 0
        history = method.learn(task, Watch(epoch_lines(epochs), progress))
    meta = provenance(
        config=config.model_dump(mode="json", warnings=False),
        method=name,
        task=number,
        classes=classes["names"],
        images=classes["hash"],
        backbone=backbone,
        previous=state,
        exemplars=exemplars,
    )
    return {
        "state": context.checkpoints.save(f"state-{name}", method.state(), meta),
        "history": [list(epoch) for epoch in history],
    }


@step("remember", task_run_name="select exemplars: {config.methods[0]} {context.label}")
def remember(
    config: Config,
    known: list[str],
    classes: Classes,
    backbone: Ref,
    state: Ref,
    previous: Ref | None,
    context: Context,
) -> Remembered:
    """Herd the new classes' images on the method's own features, and show it all exemplars.

    Args:
        config: as `method_config` gives it, with the section memory.
        known: all classes, in order of arrival.
        classes: the newest task's.
        backbone: checkpoint of the pretrained network.
        state: the method's after learning them.
        previous: the memory before this task.
        context: places.
    """
    name, method = _load(config, backbone, state, context)
    features_of = partial(extract_features, method.network)
    exemplars = choose_exemplars(
        features_of, features_of, config.memory, known, classes, previous, context
    )
    method.remember(TaskImages(*remembered(exemplars, context)))
    meta = provenance(
        config=config.model_dump(mode="json", warnings=False),
        method=name,
        learnt=state,
        backbone=backbone,
        exemplars=exemplars,
    )
    saved = context.checkpoints.save(f"state-{name}", method.state(), meta)
    return {"exemplars": exemplars, "state": saved}


@step("evaluate method", task_run_name="evaluate {config.methods[0]} {context.label}")
def evaluate_method(
    config: Config,
    tasks: list[list[str]],
    stage: int,
    tests: list[Kept],
    backbone: Ref,
    state: Ref,
    features: Ref | None,
    previous: Ref | None,
    context: Context,
) -> Evaluated:
    """Predict every test image as the method would, and compute all metrics.

    Args:
        config: as `method_config` gives it, with the section classes.
        tasks: class names of all tasks in order of arrival; later ones serve as unknowns.
        stage: number of tasks learnt, from 1.
        tests: the kept test images.
        backbone: checkpoint of the pretrained network.
        state: the method's.
        features: of all test images, where they are the bare backbone's; else they are taken here.
        previous: the method's predictions after the task before, for negative flips.
        context: places.
    """
    name, method = _load(config, backbone, state, context)
    store = context.checkpoints
    if features is not None:
        inputs = store.load(features)["features"]
    else:
        parts = [torch.zeros(0, method.feature_size)]
        with progress_bar(f"evaluate {name} {context.label}", "set") as progress:
            for done, test in enumerate(tests, start=1):
                assert test["images"] is not None
                pixels = store.load(test["images"])["images"]
                parts.append(extract_features(method.network, pixels))
                progress(done, len(tests))
        inputs = torch.cat(parts)
    names = [name for task in tasks for name in task]
    network = method.deployed.cpu()
    macs = count_macs(network, config.image.form) + method.head_weights
    meta = provenance(
        config=config.model_dump(mode="json", warnings=False),
        variant=name,
        task=stage,
        images=[test["labels"] for test in tests],
        state=state,
        features=features,
    )
    return measure(
        name,
        method.scores(inputs),
        torch.cat(targets_of(tests, names, context)),
        tasks,
        stage,
        previous,
        {
            "gmacs": macs / 1e9,
            "parameters": count_parameters(network) + method.head_weights,
        },
        meta,
        context,
        config.classes.hierarchy,
    )


def _load(config: Config, backbone: Ref, state: Ref | None, context: Context) -> tuple[str, Method]:
    if "train" in config.model_fields_set:
        train = config.train.model_copy(update={"cache_mb": context.cache_mb})
        config = config.model_copy(update={"train": train})
    (name,) = config.methods
    store = context.checkpoints
    method = create_method(name, config, store.load(backbone), context.device)
    if state is not None:
        method.load_state(store.load(state))
    return name, method


def _images(images: Images, classes: Classes, first: int) -> TaskImages:
    pixels, _ = images.load("train", classes)
    return TaskImages(pixels, first + images.labels("train", classes["names"]))
