"""A tiny network and two tasks of two classes, for every method."""

from __future__ import annotations

from typing import Any

import torch

from dynammo.config import Config, load_config
from dynammo.methods.base import Method, Task, TaskImages, Watch, create_method
from dynammo.network.backbones import pretrained_weights
from dynammo.state import State

IMAGES = 6  # of each class


def configured(**overrides: Any) -> Config:
    """The configuration; `train__epochs=3` sets train.epochs."""
    chosen = {
        "backbone.name": "test_resnet",
        "backbone.pretrained": False,
        "backbone.levels": None,  # as most of these methods were published
        "image.size": 32,
        "train.epochs": 1,
        "train.batch_size": 4,
        "train.flip": False,
        "head.epochs": 2,
        "method_options": {
            "ranpac": {"projection": 40},
            "klda": {"projection": 40},
            "anacp": {"projection": 40, "samples": 5},
            "ewc": {"samples": 3},
            "podnet": {"balanced": 2},
        },
    }
    return load_config(None, chosen | {k.replace("__", "."): v for k, v in overrides.items()})


def weights(config: Config) -> State:
    return pretrained_weights(config.backbone, seed=0)


def create(name: str, config: Config) -> Any:
    return create_method(name, config, weights(config))


def classes(*labels: int) -> TaskImages:
    """Noise around a grey of its own for each class."""
    generator = torch.Generator().manual_seed(sum(labels))
    owner = torch.tensor(labels).repeat_interleave(IMAGES)
    noise = torch.randint(0, 30, (len(owner), 3, 32, 32), generator=generator)
    return TaskImages((40 * owner.view(-1, 1, 1, 1) + noise).to(torch.uint8), owner)


FIRST, SECOND = classes(0, 1), classes(2, 3)
NOTHING = TaskImages(FIRST.images[:0], FIRST.labels[:0])


def memory(count: int, *parts: TaskImages) -> TaskImages:
    """The first images of each class."""
    places = [
        (part.labels == label).nonzero().flatten()[:count]
        for part in parts
        for label in part.labels.unique()
    ]
    together = NOTHING
    for part in parts:
        together = together.with_(part)
    shifts = torch.tensor([0, 0, 1, 1][: len(places)]) * len(FIRST.labels)
    chosen = torch.cat([place + shift for place, shift in zip(places, shifts, strict=True)])
    return TaskImages(together.images[chosen], together.labels[chosen])


def old_images(method: Method) -> TaskImages:
    """What a method sees of the first task when it learns the second."""
    kinds = {"none": NOTHING, "own": NOTHING, "exemplars": memory(3, FIRST), "all": FIRST}
    return kinds[method.about.memory]


def task(number: int, method: Method) -> Task:
    if number == 1:
        return Task(1, 0, 2, FIRST, NOTHING)
    return Task(2, 2, 4, SECOND, old_images(method))


def learn(method: Method, number: int) -> list[Any]:
    """One task as the pipeline does it; what `learn` returned."""
    history = method.learn(task(number, method), Watch())
    if method.about.memory == "exemplars":
        method.remember(memory(3, FIRST) if number == 1 else memory(2, FIRST, SECOND))
    return history
