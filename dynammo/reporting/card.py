"""A version of a learner as a document for people to complete: model card and technical
documentation in one, in the order of Annex IV of the EU's AI Act.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypedDict

import yaml

from dynammo.reporting.change import ChangeReport
from dynammo.reporting.report import template

_SETTINGS = ("image", "backbone", "adapter", "train", "merge", "head", "memory")


class Change(TypedDict):
    """A version that this one descends from, or itself."""

    number: int
    at: str
    operation: str
    passed: bool


class Card(TypedDict):
    """All that a card says beside the change report.

    `learnt` are all batches, `backbone` is the SHA-256 of the network's weights, `model` that of
    the published `model.json`, none where that is another version's.
    """

    change: ChangeReport
    history: list[Change]
    learnt: list[dict[str, Any]]
    forgotten: Mapping[str, object]
    backbone: str
    settings: dict[str, Any]
    model: str | None
    signed: bool


def write_card(card: Card) -> str:
    """The document, as Markdown: what is known filled in, what is not marked "To be written"."""
    chosen = {name: card["settings"][name] for name in _SETTINGS}
    text = yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)
    page = template("card.md.j2", text=_text)
    return page.render(card={**card["change"], **card, "settings_text": text})


def _text(value: object) -> str:
    """What users named, so that Markdown shows it as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(value).split()))
