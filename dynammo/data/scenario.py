"""The scenario: which classes arrive in which task."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from dynammo.config import MemoryConfig, ScenarioConfig
from dynammo.data.samples import ImageSet, Sample
from dynammo.errors import DataError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """Classes that arrive together. `number` counts from 1."""

    number: int
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Scenario(Sequence[Task]):
    """A sequence of tasks over one image set: `len`, `[i]`, and slices, which are scenarios too.

    The tasks of a slice keep their numbers.
    """

    image_set: ImageSet
    tasks: tuple[Task, ...]

    def __len__(self) -> int:
        return len(self.tasks)

    @overload
    def __getitem__(self, index: int) -> Task: ...

    @overload
    def __getitem__(self, index: slice) -> Scenario: ...

    def __getitem__(self, index: int | slice) -> Task | Scenario:
        if isinstance(index, slice):
            return Scenario(self.image_set, self.tasks[index])
        return self.tasks[index]

    def classes_until(self, number: int) -> tuple[str, ...]:
        """Classes of this scenario's tasks up to and with a task's number, in order of arrival."""
        return tuple(name for task in self.tasks if task.number <= number for name in task.classes)

    def train(self, task: Task) -> tuple[Sample, ...]:
        """A task's training samples, class by class."""
        return self.image_set.select("train", task.classes)

    def test(self, task: Task) -> tuple[Sample, ...]:
        """A task's test samples, class by class."""
        return self.image_set.select("test", task.classes)


def build_scenario(
    image_set: ImageSet, config: ScenarioConfig, memory: MemoryConfig, seed: int
) -> Scenario:
    """Divide the classes of an image set into tasks.

    With `tasks`, they are taken as listed: neither `class_order` nor the seed matters, and classes
    listed in no task are left out. A name with * stands for all classes that it fits, sorted, where
    * is any text: "colon.*" is all classes of a part. With `classes_per_task` k, all classes are
    put in order and cut every k; the last task has fewer where k does not divide their number,
    which is logged.

    Args:
        image_set: the images.
        config: the tasks, or k and the order. "seed": the sorted names, permuted by
            `numpy.random.default_rng(seed)`.
        memory: its size must suffice for one exemplar of each class.
        seed: of the class order.

    Raises:
        DataError: classes that the image set lacks, or that are named twice; a name with * that
            fits none; an explicit order that lacks classes; a memory too small. All problems at
            once.
    """
    known = image_set.classes
    if config.tasks is not None:
        where = "scenario.tasks"
        tasks = [
            tuple(name for given in names for name in _fitting(given, known))
            for names in config.tasks
        ]
    else:
        assert config.classes_per_task is not None  # ScenarioConfig sees to it
        where, k = "scenario.class_order", config.classes_per_task
        order = _order(config.class_order, known, seed)
        tasks = [order[start : start + k] for start in range(0, len(order), k)]
    count = Counter(name for names in tasks for name in names)

    problems = [] if known else [f"{image_set.root}: no images"]
    for name in sorted(count.keys() - set(known)):
        problems.append(f"{where}: unknown class {name!r}; known: {', '.join(known)}")
    for name in sorted(name for name in count if count[name] > 1):
        problems.append(f"{where}: class {name!r} is named {count[name]} times")
    if config.tasks is None and (missing := sorted(set(known) - count.keys())):
        problems.append(f"{where}: missing classes {', '.join(missing)}; expected all classes")
    if memory.size is not None and memory.size < len(count):
        problems.append(
            f"memory.size {memory.size} cannot hold one exemplar of each of {len(count)} classes"
        )
    if problems:
        raise DataError(problems)
    if config.tasks is None and len(tasks[-1]) < k:
        left = len(tasks[-1])
        _log.warning("the last task, number %d, has %d of %d classes", len(tasks), left, k)
    return Scenario(image_set, tuple(Task(i, names) for i, names in enumerate(tasks, start=1)))


def _fitting(given: str, known: tuple[str, ...]) -> list[str]:
    """The classes that a name with * stands for; the name itself if it has none or fits none."""
    if "*" not in given or given in known:
        return [given]
    pattern = re.compile(".*".join(re.escape(part) for part in given.split("*")), re.DOTALL)
    return [name for name in known if pattern.fullmatch(name)] or [given]


def _order(class_order: str | list[str], known: tuple[str, ...], seed: int) -> tuple[str, ...]:
    if isinstance(class_order, list):
        return tuple(class_order)
    if class_order == "sorted":
        return known
    return tuple(known[i] for i in np.random.default_rng(seed).permutation(len(known)))
