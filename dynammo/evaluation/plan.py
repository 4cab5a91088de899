"""A plan of changes: which updates of a learner were agreed on in advance, and what each must show.

This is the form that regulators have for a device that learns on: the FDA's predetermined change
control plan (guidance of December 2024) asks for a description of the modifications, a protocol
that verifies them, and an assessment of their impact. Here it is a YAML file that the gate executes
(`dynammo.evaluation.protocol`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from dynammo.config import Section
from dynammo.config.documents import read_yaml
from dynammo.config.reading import problems_of
from dynammo.errors import ConfigError

Modification = Literal[
    "add_named_class", "retrain_same_classes", "forget", "new_site", "new_scanner", "recalibrate"
]
ENOUGH = 20  # test images of a subgroup, where nothing else is said
# What no batch tells by itself, so that the user does: `dynammo learn --modification`.
STATED = ("new_site", "new_scanner", "recalibrate")


class NamedClass(Section):
    """A class that may be added. The numbers are of the batch that brings it."""

    name: str = Field(min_length=1, description="of the class, as its folder or the CSV names it")
    images: int = Field(1, ge=1, description="training images, at least")
    test_images: int = Field(1, ge=1, description="test images, at least")
    patients: int = Field(
        1, ge=1, description="patients (groups) among both, at least; an image without is its own"
    )


class Sensitivity(Section):
    """The share of a class's test images that are found: the lower end of its interval, at least.

    Every class the version knows must reach it.
    """

    every_class: float = Field(0.0, ge=0, le=1, description="of each class that is not listed")
    classes: dict[str, float] = Field(default_factory=dict, description="of these")

    def of(self, name: str) -> float:
        """The limit of a class."""
        return self.classes.get(name, self.every_class)


class Margin(Section):
    """How much worse than another version: the lower end of the paired interval, at most."""

    mean: float | None = Field(None, ge=0, le=1, description="mean class recall may lose")
    each_class: float | None = Field(None, ge=0, le=1, description="the recall of any class may")


class NonInferiority(Section):
    """Against which version, on the classes that both know and the same images."""

    champion: Margin = Margin()
    authorised: Margin = Margin()


class NegativeFlips(Section):
    """The share of images right before and wrong now (champion): the upper end, at most."""

    overall: float | None = Field(None, ge=0, le=1, description="of images of all old classes")
    grave: dict[str, float] = Field(default_factory=dict, description="of images of these classes")


class Subgroup(Section):
    """How much worse a subgroup may be found than all other images: the lower end of the interval
    of the difference, at most. Each value of the column is one.
    """

    column: str = Field(min_length=1, description="kept of test images (retention.subgroups)")
    gap: float = Field(ge=0, le=1, description="so much of mean class recall, at most")
    sensitivity: str | None = Field(None, description="of this class instead")
    images: int = Field(
        ENOUGH,
        ge=2,
        description="test images (of the class) of a subgroup; less is not judged",
    )


class Limits(Section):
    """What each update must show. Judged is the end of the interval that is worse."""

    confidence: float = Field(0.95, gt=0.5, lt=1, description="of all intervals, two-sided")
    sensitivity: Sensitivity = Sensitivity()
    non_inferiority: NonInferiority = NonInferiority()
    negative_flips: NegativeFlips = NegativeFlips()
    subgroups: list[Subgroup] = Field(
        default_factory=list, description="gaps between site, sex, age band and the rest"
    )
    ece: float | None = Field(None, ge=0, le=1, description="calibration error, at most")
    unknown_auroc: float | None = Field(
        None, ge=0, le=1, description="known against unknown classes, at least, where measurable"
    )


class Rollback(Section):
    """What happens when a version in use turns out to be bad."""

    to: Literal["champion_before", "authorised"] = Field(
        "champion_before", description="the version that is gone back to"
    )
    when: str = Field(min_length=1, description="in words")


class Plan(Section):
    """The whole document, `plan.yaml`."""

    device: str = Field(min_length=1, description="name")
    intended_use: str = Field(min_length=1, description="in words")
    authorised: list[str] = Field(min_length=1, description="classes of the version in use now")
    named: list[NamedClass] = Field(
        default_factory=list, description="classes that may be added, named in advance"
    )
    modifications: list[Modification] = Field(min_length=1, description="types that are allowed")
    locked_test: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="hash of the test images of the version in use now, which must stay: "
        "dynammo plan NAME --draft shows it",
    )
    limits: Limits = Limits()
    rollback: Rollback
    signatures: list[str] = Field(default_factory=list, description="who agreed, when, as what")

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Plan:
        if problems := list(self._contradictions()):
            raise ValueError("\n".join(problems))
        return self

    @property
    def classes(self) -> list[str]:
        """All that a version under this plan may know."""
        return [*self.authorised, *(own.name for own in self.named)]

    def _contradictions(self) -> Iterator[str]:
        seen: set[str] = set()
        for name in self.classes:
            if name in seen:
                yield f"class {name!r} is given twice in authorised and named"
            seen.add(name)
        for kind in sorted(set(self.modifications)):
            if self.modifications.count(kind) > 1:
                yield f"modifications: {kind} is given twice"
        if self.named and "add_named_class" not in self.modifications:
            yield "classes are named, but modifications lack add_named_class"
        if not self.named and "add_named_class" in self.modifications:
            yield "modifications have add_named_class, but no class is named"
        limits = {
            "limits.sensitivity.classes": self.limits.sensitivity.classes,
            "limits.negative_flips.grave": self.limits.negative_flips.grave,
        }
        for own in self.limits.subgroups:
            if own.sensitivity is not None and own.sensitivity not in seen:
                yield f"limits.subgroups: {own.sensitivity!r} is neither authorised nor named"
        for where, values in limits.items():
            for name, value in values.items():
                if name not in seen:
                    yield f"{where}: {name!r} is neither authorised nor named"
                if not 0 <= value <= 1:
                    yield f"{where}.{name} must lie in [0, 1], got {value}"


def read_plan(path: str | Path) -> Plan:
    """Read a plan.

    Raises:
        ConfigError: the file is missing or not YAML, a key is given twice or unknown, or a value is
            wrong; all problems at once.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError([f"{path} must hold keys like 'device:', got {type(values).__name__}"])
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        raise ConfigError(problems_of(error, Plan)) from None
