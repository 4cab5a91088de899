"""What a method of class-incremental learning is to the pipeline, and what reports say of it."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dynammo.config import Config
from dynammo.errors import ConfigError
from dynammo.heads import HEAD_RULES
from dynammo.heads.linear import Scores
from dynammo.methods import METHODS
from dynammo.network.network import build_network
from dynammo.seeds import derive_seed
from dynammo.state import State
from dynammo.training.loop import Epoch


class Style(NamedTuple):
    """How a method is drawn in every figure: a matplotlib colour and marker."""

    colour: str
    marker: str


class About(NamedTuple):
    """What people are told of a method.

    `meaning` is one line without a full stop, `source` where the method was published, `memory`
    which images of earlier classes it learns from: none, herded exemplars within the common budget,
    its own choice within the bytes of that budget, or all of them.
    """

    meaning: str
    source: str
    memory: Literal["none", "exemplars", "own", "all"]
    style: Style


class Described:
    """Base of every entry of `METHODS`."""

    about: ClassVar[About]
    # Sections of the configuration that the result depends on beside seed, backbone and image.
    sections: ClassVar[tuple[str, ...]] = ()
    # Whether the features are always those of the bare backbone: then they are taken once.
    bare: ClassVar[bool] = False
    # Which of the run's adapters it has: all merged into one, each of them, or none.
    shared_adapters: ClassVar[Literal["merged", "each"] | None] = None
    # Whether it learns further images of classes it knows, and can forget.
    revisable: ClassVar[bool] = False
    # Whether it trains the whole network, and so depends on train.network_learning_rate.
    trains_network: ClassVar[bool] = False


class TaskImages(NamedTuple):
    """Images (N, 3, H, W) uint8 and their class indices (N,) int64 in order of arrival."""

    images: Tensor
    labels: Tensor

    def with_(self, other: TaskImages) -> TaskImages:
        """These images and then those."""
        return TaskImages(
            torch.cat([self.images, other.images]), torch.cat([self.labels, other.labels])
        )

    def of_class(self, label: int) -> Tensor:
        """The images of one class, in their order."""
        return self.images[self.labels == label]


class Task(NamedTuple):
    """What arrives: task `number`, from 1, whose classes are `first`, ..., `classes` - 1.

    `old` are images of the classes 0, ..., `first` - 1, as `About.memory` says: none, the
    exemplars, or all. Exemplars are class by class, the best first.
    """

    number: int
    first: int
    classes: int
    new: TaskImages
    old: TaskImages


class Watch(NamedTuple):
    """Who is told how the learning goes.

    `on_epoch` is called with an epoch's number and means, `progress` with (batches done, batches in
    all epochs).
    """

    on_epoch: Callable[[int, Epoch], None] | None = None
    progress: Callable[[int, int], None] | None = None


class Method(Described, ABC):
    """A method that the pipeline learns as it is: a subclass in a file and a line in `METHODS`.

    After each task the pipeline calls `learn`, then, where the method remembers exemplars, herds
    them on the features of `network` and calls `remember`; then it saves `state`. The next task
    finds a new object with that state. Predictions are `scores` of the features of `network`.

    A subclass takes its own settings as further keyword arguments with defaults: they are what
    `method_options` of the configuration may change.

    Args:
        config: sections seed, backbone, image, and those that `sections` names.
        weights: the pretrained backbone's; none leaves it random, enough to count its work.
        device: where to compute.
    """

    def __init__(
        self, config: Config, weights: State | None, device: torch.device | str = "cpu"
    ) -> None:
        self.config = config
        self.weights = weights
        self.device = torch.device(device)
        network = build_network(config.backbone, weights, config.image.form)
        self.feature_size = network.feature_size
        self.network: nn.Module = network.to(self.device)

    @abstractmethod
    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        """Learn a task's classes; returns the means of each epoch, none where nothing is trained.

        Every random choice follows from `seed`.
        """

    def remember(self, memory: TaskImages) -> None:
        """Make use of the exemplars of all classes seen, the newest included, after `learn`.

        Class by class, the best first: of an old class, the first of those there were before.
        """

    @abstractmethod
    def scores(self, features: Tensor) -> Scores:
        """Predictions from features (N, D) of `network`."""

    @abstractmethod
    def state(self) -> State:
        """All that learning has changed, as named tensors on the CPU."""

    @abstractmethod
    def load_state(self, state: State) -> None:
        """Become as the method was whose `state` this is."""

    @property
    @abstractmethod
    def head_weights(self) -> int:
        """Numbers that `scores` multiplies a feature vector with: its multiply-accumulates."""

    @property
    def deployed(self) -> nn.Module:
        """The network whose multiply-accumulates and parameters are counted."""
        return self.network

    def seed(self, *purpose: str | int) -> int:
        """The seed for one purpose, such as "train", 3."""
        return derive_seed(self.config.seed, *purpose)


def create_method(
    name: str, config: Config, weights: State | None, device: torch.device | str = "cpu"
) -> Method:
    """The method of that name, with its options of the configuration.

    Raises:
        ConfigError: it does not take an option or its value.
    """
    make = METHODS[name]
    if not issubclass(make, Method):
        raise TypeError(f"{name} is learnt in steps of its own")
    options = config.method_options.get(name, {})
    if unknown := sorted(set(options) - set(known := own_options(make))):
        takes = f"known: {', '.join(known)}" if known else "it takes none"
        raise ConfigError(
            [f"method_options.{name}: unknown option {option!r}; {takes}" for option in unknown]
        )
    if wrong := [key for key, value in options.items() if not _is_like(value, known[key])]:
        raise ConfigError(
            [
                f"method_options.{name}.{key} must be like {known[key]!r}, got {options[key]!r}"
                for key in wrong
            ]
        )
    try:
        return make(config, weights, device, **options)
    except ValueError as error:
        raise ConfigError([f"method_options.{name}: {error}"]) from None


def check_methods(config: Config) -> None:
    """Find out before anything is computed whether all methods can be learnt as configured.

    Raises:
        ConfigError: one does not take its options or lacks the exemplars or adapters it needs. All
            problems at once.
    """
    problems = []
    for name, options in config.method_options.items():
        if options and not issubclass(METHODS[name], Method):
            problems.append(f"method_options.{name}: it takes none, but those of the sections")
    for name in config.methods:
        if issubclass(METHODS[name], Method):
            try:
                create_method(name, config, None)
            except ConfigError as error:
                problems += error.problems
    each = [name for name in config.methods if METHODS[name].shared_adapters == "each"]
    if config.adapter.tasks is not None and each:
        problems.append(
            f"adapter.tasks: {each[0]} needs an adapter for every task; leave it out of methods"
        )
    if config.memory.per_class == 0:
        own_head = {name for name in config.methods if METHODS[name].revisable}
        if own_head and HEAD_RULES[config.head.rule].evidence == "exemplars":
            problems.append(f"memory.per_class 0: head.rule {config.head.rule} needs exemplars")
        needing = [
            name
            for name in config.methods
            if name not in own_head and METHODS[name].about.memory in ("exemplars", "own")
        ]
        if needing:
            problems.append(
                f"memory.per_class 0: methods that need exemplars: {', '.join(needing)}"
            )
    starts = config.head.rule == "fine_tune" and config.head.init == "task_heads"
    if config.adapter.tasks is not None and starts:
        problems.append("adapter.tasks: head.init task_heads needs a head of every task")
    if problems:
        raise ConfigError(problems)


def _is_like(value: Any, default: Any) -> bool:
    """Whether an option's value is of its default's kind; whole numbers stand for others, too."""
    if default is None:
        return value is None or _is_like(value, 0.0)
    if isinstance(default, float) and type(value) is int:
        return True
    return type(value) is type(default)


def own_options(make: type[Method]) -> dict[str, Any]:
    """Keyword arguments of a method's own -> their defaults."""
    common = set(inspect.signature(Method.__init__).parameters)
    return {
        name: parameter.default
        for name, parameter in inspect.signature(make.__init__).parameters.items()
        if name not in common
    }
