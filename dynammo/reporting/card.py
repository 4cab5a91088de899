"""A version of a learner as a document for people to complete: model card and technical
documentation in one, in the order of Annex IV of the EU's AI Act.

Source: Regulation (EU) 2024/1689 (OJ L, 2024/1689, 12.7.2024): Annex IV, whose points 1 to 9 are
the sections and whose points 2 (d) to (h) are the paragraphs of section 2; Articles 9, 12, 14, 15,
19, 26 (6), 47 and 72.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, TypedDict

import yaml

from dynammo.evaluation.honesty import Honesty
from dynammo.reporting.change import ChangeReport, enough_images, interval_text
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
    the published `model.json`, none where that is another version's. `sets` is whether the model
    gives prediction sets, and `unknown` by what it says that an image is of no known class; none
    where it does not.
    """

    change: ChangeReport
    history: list[Change]
    learnt: list[dict[str, Any]]
    forgotten: Mapping[str, object]
    backbone: str
    settings: dict[str, Any]
    model: str | None
    signed: bool
    sets: bool
    unknown: str | None


def write_card(card: Card) -> str:
    """The document, as Markdown: what is known filled in, what is not marked "To be written"."""
    chosen = {name: card["settings"][name] for name in _SETTINGS}
    text = yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)
    page = template("card.md.j2", text=_text, interval=interval_text)
    honesty = card["change"]["judgement"]["honesty"]
    return page.render(
        card={**card["change"], **card, "settings_text": text},
        enough=partial(enough_images, card["change"]["plan"]),
        mean=partial(_mean, honesty),
        worst=partial(_worst, honesty),
    )


def _measured(honesty: Honesty | None, key: str) -> dict[str, float]:
    classes = honesty["classes"] if honesty else {}
    found: dict[str, Any] = {name: own.get(key) for name, own in classes.items()}
    return {name: value for name, value in found.items() if value is not None}


def _mean(honesty: Honesty | None, key: str) -> float:
    found = _measured(honesty, key)
    return sum(found.values()) / len(found)


def _worst(honesty: Honesty | None, key: str) -> tuple[str, float] | None:
    """The class of which most false alarms, or fewest images, are found; none if none is known."""
    best = max if key == "false_alarms" else min
    return best(_measured(honesty, key).items(), key=lambda own: own[1], default=None)


def _text(value: object) -> str:
    """What users named, so that Markdown shows it as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(value).split()))
