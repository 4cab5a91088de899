"""What one task of the scenario leaves behind, as references to checkpoints."""

from __future__ import annotations

from typing import TypedDict

from dynammo.checkpoint import Ref
from tasks.adapters import Trained
from tasks.evaluation import Evaluated
from tasks.merge_inputs import MergeInputs


class Adapted(TypedDict):
    """What merged and unmerged share: `adapters` and the `heads` that they were trained with, one a
    task so far, unless `adapter.tasks` left the later ones out; `trained`, this task's; `inputs`,
    what else the merge rule needs; the `merged` adapter; `features` of this task's images under it;
    the memory that they chose.
    """

    trained: Trained | None
    adapters: list[Ref]
    heads: list[Ref]
    inputs: MergeInputs
    merged: Ref
    features: Ref
    exemplars: Ref


class Learnt(TypedDict):
    """One method after a task: `features` (of all test images) and `heads` have one entry, or for
    unmerged one a task. `adapter` is the merged one, `exemplars` the images remembered and
    `statistics` those of the classes seen, where the method has them.
    """

    adapter: Ref | None
    features: list[Ref]
    heads: list[Ref]
    exemplars: Ref | None
    statistics: Ref | None


class Variant(Learnt):
    """A method after a task, measured."""

    evaluated: Evaluated


class Peer(TypedDict):
    """A method that is learnt through `dynammo.methods.base.Method`, after a task, measured.

    `exemplars` is none where it remembers no images; `history` has (loss, accuracy) of each epoch.
    """

    state: Ref
    history: list[list[float]]
    exemplars: Ref | None
    evaluated: Evaluated


class Stage(TypedDict):
    """The state after one task. The next task needs nothing else. `adapted` is none where no method
    needs adapters; `variants` and `peers` together have an entry a method.
    """

    number: int
    adapted: Adapted | None
    variants: dict[str, Variant]
    peers: dict[str, Peer]


def measured(stage: Stage) -> dict[str, Evaluated]:
    """What each method was measured to do after the task."""
    both = {**stage["variants"], **stage["peers"]}
    return {name: variant["evaluated"] for name, variant in both.items()}
