"""What learning leaves behind, as references to checkpoints: all that the next batch needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict

from dynammo.checkpoint import Ref
from dynammo.merging.trust import Trust
from tasks.evaluate import Evaluated
from tasks.merge_inputs import MergeInputs
from tasks.support.workspace import Kept, Trained


class Adapted(TypedDict):
    """What methods with adapters share.

    `adapters` and the `heads` that they were trained with, one a batch so far, unless
    `adapter.tasks` left the later ones out; `numbers` of the batches that they were trained on;
    `trained`, this batch's; `inputs`, what else the merge rule needs; the `merged` adapter;
    `features` of this batch's images under it; the memory that they chose; `trust`, where the
    configuration asks for it.
    """

    trained: Trained | None
    numbers: list[int]
    adapters: list[Ref]
    heads: list[Ref]
    inputs: MergeInputs
    merged: Ref
    features: Ref | None
    exemplars: Ref
    trust: NotRequired[Trust]


class Part(TypedDict):
    """A batch's share of the class statistics, with which it can be taken out again.

    `classes` of the batch; `statistics` of each as measured (`dynammo.heads.statistics.pack`), none
    if it was forgotten; `drift`, the map that carried the older batches' over when it came.
    """

    batch: int
    classes: list[str]
    statistics: Ref | None
    drift: Ref | None


class Learnt(TypedDict):
    """A method after a batch: what it has of these, and nothing for the rest.

    `state` of a method that has a network of its own, and the `history` of training it, (loss,
    accuracy) of each epoch; `adapter`, the merged one, or all `adapters` of one that keeps them;
    `heads`, one, or one a batch; `exemplars`, the images remembered; `statistics` of the classes
    seen, and `parts` of these, one a batch; `features` of all test images; `evaluated` on them.
    """

    state: Ref | None
    history: list[list[float]]
    adapter: Ref | None
    adapters: list[Ref]
    heads: list[Ref]
    exemplars: Ref | None
    statistics: Ref | None
    parts: list[Part]
    features: list[Ref]
    evaluated: Evaluated | None


def learnt(
    *,
    state: Ref | None = None,
    history: Sequence[list[float]] = (),
    adapter: Ref | None = None,
    adapters: Sequence[Ref] = (),
    heads: Sequence[Ref] = (),
    exemplars: Ref | None = None,
    statistics: Ref | None = None,
    parts: Sequence[Part] = (),
) -> Learnt:
    """A method that is not measured yet."""
    return {
        "state": state,
        "history": list(history),
        "adapter": adapter,
        "adapters": list(adapters),
        "heads": list(heads),
        "exemplars": exemplars,
        "statistics": statistics,
        "parts": list(parts),
        "features": [],
        "evaluated": None,
    }


class CountedPart(TypedDict):
    """A batch's share of the counts."""

    batch: int
    classes: list[str]
    counts: Ref


class Clinical(TypedDict):
    """What is known beside images: `counts` of all classes (`dynammo.clinical`), and `parts` of
    these, one a batch, as far as they are kept.
    """

    counts: Ref
    parts: list[CountedPart]


class Stage(TypedDict):
    """The state after `number` batches. The next one needs nothing else.

    `tasks` are the classes that each batch brought, of those that brought any. `adapted` is none
    where no method needs adapters; `methods` has an entry for each; `training` are all training
    images, where a method needs them; `clinical`, where columns are counted.
    """

    number: int
    tasks: list[list[str]]
    adapted: Adapted | None
    methods: dict[str, Learnt]
    training: list[Kept]
    clinical: NotRequired[Clinical]


def known_classes(stage: Stage | None) -> list[str]:
    """All classes learnt so far, in order of arrival."""
    return [name for task in stage["tasks"] for name in task] if stage else []


def measured(stage: Stage) -> dict[str, Evaluated]:
    """What each method was measured to do after the batch."""
    return {name: own["evaluated"] for name, own in stage["methods"].items() if own["evaluated"]}
