"""What the steps of a method are given, and what they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from dynammo.checkpoint import Ref
from dynammo.config import Config
from dynammo.config.sections import AdapterConfig, ArchitectureConfig, ImageConfig
from dynammo.heads import HEAD_RULES
from tasks.evaluate import Evaluated
from tasks.support.stage import Learnt, Stage, known_classes
from tasks.support.workspace import Classes, Context, Kept
from tasks.version_data import Batch

Network = tuple[ArchitectureConfig, ImageConfig, AdapterConfig]


@dataclass(frozen=True)
class Configured:
    """What is done under a configuration."""

    config: Config

    @property
    def network(self) -> Network:
        """The sections that a network is built from."""
        return self.config.backbone.architecture, self.config.image, self.config.adapter


@dataclass(frozen=True)
class Lesson(Configured):
    """A batch, and all that may be known when it is learnt.

    `stage` is what comes out, as far as it is made; `before` what there was, none for the first
    batch. No image of an earlier batch can be reached but those that `before` keeps.
    """

    batch: Batch
    backbone: Ref
    before: Stage | None
    stage: Stage
    context: Context

    @property
    def classes(self) -> Classes:
        """Training images of the batch."""
        return self.batch["train"]

    @property
    def known(self) -> list[str]:
        """All classes, the batch's included, in order of arrival."""
        return known_classes(self.stage)

    @property
    def known_before(self) -> list[str]:
        """Those before the batch."""
        return known_classes(self.before)

    def named(self, name: str) -> Lesson:
        """The same, for a method of that name to tell of."""
        return replace(self, context=self.context.named(name))


@dataclass(frozen=True)
class Exam(Configured):
    """What methods are measured on after a batch.

    `tasks` are all classes by task, those not learnt yet last; `learnt` how many of them are;
    `counts` of what is known beside images, where it is.
    """

    backbone: Ref
    tasks: list[list[str]]
    learnt: int
    tests: list[Kept]
    counts: Ref | None
    context: Context


class Steps(ABC):
    """Leads one method through a batch, as discrete tasks of the flow."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def learn(self, lesson: Lesson) -> Learnt:
        """Remember, and fit what predicts; `lesson.stage["adapted"]` has the adapters."""

    @abstractmethod
    def evaluate(self, own: Learnt, was: Learnt | None, exam: Exam) -> Learnt:
        """The method with its metrics.

        Args:
            own: what was learnt.
            was: the same before the batch, measured on the same images or the first of them.
            exam: what to measure on.
        """

    def before(self, lesson: Lesson) -> Learnt | None:
        """The method before the batch; none for the first."""
        return lesson.before["methods"][self.name] if lesson.before else None


def takes_statistics(config: Config) -> bool:
    """Whether the head follows from class statistics, not from exemplars."""
    evidence: str = HEAD_RULES[config.head.rule].evidence
    return evidence == "statistics"


def answers(was: Learnt | None) -> Ref | None:
    """Predictions of before, with which negative flips are counted."""
    evaluated: Evaluated | None = was["evaluated"] if was else None
    return evaluated["predictions"] if evaluated else None
