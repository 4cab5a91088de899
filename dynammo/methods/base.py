"""What a method of class-incremental learning is to the pipeline, and what reports say of it."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple


class Style(NamedTuple):
    """How a method is drawn in every figure: a matplotlib colour and marker."""

    colour: str
    marker: str


class About(NamedTuple):
    """What people are told of a method.

    `meaning` is one line without a full stop, `source` where the method was published, `memory`
    which images of earlier classes it learns from: none, herded exemplars within the common budget,
    or all of them.
    """

    meaning: str
    source: str
    memory: Literal["none", "exemplars", "all"]
    style: Style


class Described:
    """Base of every entry of `METHODS`."""

    about: ClassVar[About]
