"""The steps of every method that is learnt through `dynammo.methods.base.Method`."""

from __future__ import annotations

from functools import partial
from typing import Any, TypedDict

from prefect import get_run_logger

from dynammo.checkpoint import Ref
from dynammo.config import Config
from dynammo.methods import METHODS
from dynammo.methods.base import Method, Task, TaskImages, Watch, create_method
from dynammo.network.cost import count_macs, count_parameters
from dynammo.network.features import extract_features
from tasks.evaluation import Evaluated, measure
from tasks.exemplars import choose_exemplars
from tasks.support.caching import step
from tasks.support.images import Images
from tasks.support.progress import epoch_lines, progress_bar
from tasks.support.workspace import CHECKPOINTS, Classes, Context, provenance, settings


class LearntTask(TypedDict):
    """A method's state after a task, and (loss, accuracy) of each epoch."""

    state: Ref
    history: list[list[float]]


class Remembered(TypedDict):
    """The memory after a task, and the method's state once it has seen it."""

    exemplars: Ref
    state: Ref


def method_settings(config: Config, name: str, *sections: str) -> dict[str, Any]:
    """What a method's result depends on, as a configuration of this method alone.

    Args:
        config: the experiment.
        name: of the method.
        sections: further ones, beside those that the method itself names.
    """
    own = METHODS[name].sections
    values = settings(config, "seed", "backbone", "image", *own, *sections)
    if METHODS[name].trains_network:
        values["train"]["network_learning_rate"] = config.train.network_learning_rate
    return {
        **values,
        "methods": [name],
        "method_options": {name: config.method_options.get(name, {})},
    }


@step("learn task", task_run_name="learn {settings[methods][0]} {context[label]}")
def learn_task(
    settings: dict[str, Any],
    number: int,
    classes: Classes,
    earlier: list[Classes],
    backbone: Ref,
    state: Ref | None,
    exemplars: Ref | None,
    context: Context,
) -> LearntTask:
    """One task's classes, learnt on top of the method's state after the task before.

    Args:
        settings: as `method_settings` gives them.
        number: of the task, from 1.
        classes: the task's.
        earlier: those of the tasks before it.
        backbone: checkpoint of the pretrained network.
        state: the method's after the task before; none for the first.
        exemplars: the memory after the task before; none where the method has none.
        context: places.
    """
    logger = get_run_logger()
    config, name, method = _load(settings, backbone, state, context)
    images = Images.of(context)
    first = sum(len(part["names"]) for part in earlier)
    new = _images(images, classes, first)
    old = TaskImages(new.images[:0], new.labels[:0])
    if method.about.memory == "all":
        start = 0
        for part in earlier:
            old = old.with_(_images(images, part, start))
            start += len(part["names"])
    elif exemplars is not None:
        old = TaskImages(*images.exemplars(exemplars))
    logger.info(
        "%s: %d images of %s, %d of earlier classes",
        name,
        len(new.labels),
        ", ".join(classes["names"]),
        len(old.labels),
    )

    with progress_bar(f"learn {name} {context['label']}", "batch") as progress:
        task = Task(number, first, first + len(classes["names"]), new, old)
        history = method.learn(task, Watch(epoch_lines(config.train.epochs), progress))
    meta = provenance(
        settings,
        method=name,
        task=number,
        classes=classes["names"],
        images=classes["hash"],
        backbone=backbone["sha256"],
        previous=state and state["sha256"],
        exemplars=exemplars and exemplars["sha256"],
    )
    return {
        "state": CHECKPOINTS.save(f"state-{name}", method.state(), meta),
        "history": [list(epoch) for epoch in history],
    }


@step("remember", task_run_name="select exemplars: {settings[methods][0]} {context[label]}")
def remember(
    settings: dict[str, Any],
    classes: Classes,
    backbone: Ref,
    state: Ref,
    previous: Ref | None,
    context: Context,
) -> Remembered:
    """Herd the new classes' images on the method's own features, and show it all exemplars.

    Args:
        settings: as `method_settings` gives them, with the section memory.
        classes: the newest task's.
        backbone: checkpoint of the pretrained network.
        state: the method's after learning them.
        previous: the memory before this task.
        context: places.
    """
    config, name, method = _load(settings, backbone, state, context)
    images = Images.of(context)
    features_of = partial(extract_features, method.network)
    exemplars = choose_exemplars(features_of, images, config.memory, classes, previous)
    method.remember(TaskImages(*images.exemplars(exemplars)))
    meta = provenance(
        settings,
        method=name,
        learnt=state["sha256"],
        backbone=backbone["sha256"],
        exemplars=exemplars["sha256"],
    )
    saved = CHECKPOINTS.save(f"state-{name}", method.state(), meta)
    return {"exemplars": exemplars, "state": saved}


@step("evaluate method", task_run_name="evaluate {settings[methods][0]} {context[label]}")
def evaluate_method(
    settings: dict[str, Any],
    tasks: list[list[str]],
    stage: int,
    tests: Classes,
    backbone: Ref,
    state: Ref,
    features: Ref | None,
    previous: Ref | None,
    context: Context,
) -> Evaluated:
    """Predict every test image as the method would, and compute all metrics.

    Args:
        settings: as `method_settings` gives them.
        tasks: class names of all tasks in order of arrival; later ones serve as unknowns.
        stage: number of tasks learnt, from 1.
        tests: all classes, with the hash of their test images.
        backbone: checkpoint of the pretrained network.
        state: the method's.
        features: of all test images, where they are the bare backbone's; else they are taken here.
        previous: the method's predictions after the task before, for negative flips.
        context: places.
    """
    config, name, method = _load(settings, backbone, state, context)
    images = Images.of(context)
    if features is not None:
        inputs = CHECKPOINTS.load(features)["features"]
    else:
        pixels, _ = images.load("test", tests)
        with progress_bar(f"evaluate {name} {context['label']}", "image") as progress:
            inputs = extract_features(method.network, pixels, progress=progress)
    network = method.deployed.cpu()
    macs = count_macs(network, config.image.size) + method.head_weights
    meta = provenance(
        settings,
        variant=name,
        task=stage,
        images=tests["hash"],
        state=state["sha256"],
        features=features and features["sha256"],
    )
    return measure(
        name,
        method.scores(inputs),
        images.labels("test", tests["names"]),
        tasks,
        stage,
        previous,
        {
            "gmacs": macs / 1e9,
            "parameters": count_parameters(network) + method.head_weights,
        },
        meta,
        context,
    )


def _load(
    settings: dict[str, Any], backbone: Ref, state: Ref | None, context: Context
) -> tuple[Config, str, Method]:
    config = Config.model_validate(settings)
    train = config.train.model_copy(update={"cache_mb": context["cache_mb"]})
    config = config.model_copy(update={"train": train})
    (name,) = config.methods
    method = create_method(name, config, CHECKPOINTS.load(backbone), context["device"])
    if state is not None:
        method.load_state(CHECKPOINTS.load(state))
    return config, name, method


def _images(images: Images, classes: Classes, first: int) -> TaskImages:
    pixels, _ = images.load("train", classes)
    return TaskImages(pixels, first + images.labels("train", classes["names"]))
