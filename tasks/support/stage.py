"""What learning leaves behind, as references to checkpoints: all that the next batch needs."""

from __future__ import annotations

from typing import TypedDict

from dynammo.checkpoint import Ref
from tasks.evaluate import Evaluated
from tasks.merge_inputs import MergeInputs
from tasks.support.workspace import Kept, Trained


class Adapted(TypedDict):
    """What merged and unmerged share: `adapters` and the `heads` that they were trained with, one a
    batch so far, unless `adapter.tasks` left the later ones out; `numbers` of the batches that they
    were trained on; `trained`, this batch's; `inputs`,
    what else the merge rule needs; the `merged` adapter; `features` of this batch's images under
    it; the memory that they chose.
    """

    trained: Trained | None
    numbers: list[int]
    adapters: list[Ref]
    heads: list[Ref]
    inputs: MergeInputs
    merged: Ref
    features: Ref | None
    exemplars: Ref


class Part(TypedDict):
    """A batch's share of the class statistics, with which it can be taken out again.

    `classes` of the batch; `statistics` of each as measured (`dynammo.heads.statistics.pack`), none
    if it was forgotten; `drift`, the map that carried the older batches' over when it came.
    """

    batch: int
    classes: list[str]
    statistics: Ref | None
    drift: Ref | None


class Variant(TypedDict):
    """merged, unmerged or frozen after a batch.

    `heads` has one entry, or for unmerged one a batch. `adapter` is the merged one, `exemplars` the
    images remembered and `statistics` those of the classes seen, where the method has them; `parts`
    of these, one a batch; `features` of all test images; `evaluated` on them.
    """

    adapter: Ref | None
    heads: list[Ref]
    exemplars: Ref | None
    statistics: Ref | None
    parts: list[Part]
    features: list[Ref]
    evaluated: Evaluated | None


class Peer(TypedDict):
    """A method that is learnt through `dynammo.methods.base.Method`, after a batch.

    `exemplars` is none where it remembers no images; `history` has (loss, accuracy) of each epoch.
    """

    state: Ref
    history: list[list[float]]
    exemplars: Ref | None
    evaluated: Evaluated | None


class Stage(TypedDict):
    """The state after `number` batches. The next one needs nothing else.

    `tasks` are the classes that each batch brought, of those that brought any. `adapted` is none
    where no method needs adapters; `variants` and `peers` together have an entry a method;
    `training` are all training images, where a method needs them.
    """

    number: int
    tasks: list[list[str]]
    adapted: Adapted | None
    variants: dict[str, Variant]
    peers: dict[str, Peer]
    training: list[Kept]


def known_classes(stage: Stage | None) -> list[str]:
    """All classes learnt so far, in order of arrival."""
    return [name for task in stage["tasks"] for name in task] if stage else []


def measured(stage: Stage) -> dict[str, Evaluated]:
    """What each method was measured to do after the batch."""
    both = {**stage["variants"], **stage["peers"]}
    return {name: own["evaluated"] for name, own in both.items() if own["evaluated"]}
