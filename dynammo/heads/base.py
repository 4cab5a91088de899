"""What a head rule is given, and what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from dynammo.config import HeadConfig
from dynammo.heads.statistics import ClassStatistics
from dynammo.state import State


@dataclass(frozen=True)
class Evidence:
    """What is known of the C classes seen so far, under the network as it is now.

    Args:
        exemplars: (V, M, D) features of V views of the remembered images; none for rules that do
            not use them.
        labels: (M,) their class indices.
        statistics: of all C classes, of their power-normalised features (`config.power`); none for
            rules that do not use them.
        new: (V, N, D) features of V views of the newest task's training images, on which its
            classes' statistics were measured; none for rules that do not use statistics.
        new_labels: (N,) their class indices.
        task_heads: the heads that the tasks' adapters were trained with, "others" last; empty where
            there are no adapters.
        seed: the experiment's.
        before: the head before the newest task; none with the first.
    """

    exemplars: Tensor | None
    labels: Tensor | None
    statistics: ClassStatistics | None
    new: Tensor | None
    new_labels: Tensor | None
    task_heads: Sequence[State]
    seed: int
    before: State | None = None


class HeadRule(Protocol):
    """Makes one head over all classes: `weight` (C, D), `bias` (C,), and `power` () if it takes
    power-normalised features (`dynammo.heads.scaling`); what else it holds is for its successor.

    `evidence` is what it works on: "exemplars" (remembered images), or "statistics", with which no
    image needs to be remembered.
    """

    evidence: ClassVar[Literal["exemplars", "statistics"]]

    def __call__(self, evidence: Evidence, config: HeadConfig) -> State:
        """The head."""
        ...

    def again(
        self, head: State, before: ClassStatistics, now: ClassStatistics, config: HeadConfig
    ) -> State:
        """The head after classes were forgotten; asked for only of rules that work on statistics.

        Args:
            head: as it was.
            before: the statistics that it was made from.
            now: those of the classes that are left.
            config: the rule's settings.
        """
        ...
