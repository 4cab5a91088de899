"""What one task of the scenario leaves behind, as references to checkpoints."""

from __future__ import annotations

from typing import TypedDict

from dynammo.checkpoint import Ref
from tasks.adapters import Trained
from tasks.evaluation import Evaluated


class Variant(TypedDict):
    """One way of using what was learnt so far: merged, unmerged or frozen.

    `features` (of all test images) and `heads` have one entry, or for unmerged one a task.
    """

    features: list[Ref]
    heads: list[Ref]
    evaluated: Evaluated


class Stage(TypedDict):
    """The state after one task. The next task needs nothing else."""

    number: int
    trained: Trained
    merged: Ref
    exemplars: Ref
    variants: dict[str, Variant]
