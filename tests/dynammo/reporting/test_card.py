from __future__ import annotations

import re
from typing import Any

import pytest

from dynammo.config import Config
from dynammo.reporting.card import Card, write_card
from tests.dynammo.reporting.test_change import NEW, by_group, document


def card(**more: Any) -> Card:
    batch = {"number": 1, "at": "2027-01-05T10:00:00", "hash": "b" * 64, "new": ["nevus", NEW]}
    return {  # type: ignore[return-value]
        "change": document(),
        "history": [
            {"number": 1, "at": "2027-01-05T10:00:00", "operation": "learn a|b", "passed": True}
        ],
        "learnt": [{**batch, "again": [], "train_images": 40, "test_images": 20}],
        "forgotten": {"batches": [], "classes": []},
        "backbone": "c" * 64,
        "settings": Config().model_dump(mode="json"),
        "model": "d" * 64,
        "signed": True,
        "sets": True,
        "unknown": "its answer or how the image looks",
        **more,
    }


def test_it_has_the_order_of_the_annex() -> None:
    numbers = re.findall(r"^## (\d)\. ", write_card(card()), re.M)
    assert numbers == [str(number) for number in range(1, 10)]


def test_what_is_held_is_said_and_the_rest_marked() -> None:
    text = write_card(card())
    row = next(line for line in text.splitlines() if line.startswith("| nevus |"))
    assert row == "| nevus | 20 | 20 | 70.0 | 50.0 to 80.0 | 91.2 | 1.5 |"
    assert "d" * 64 in text and "the model is signed" in text
    assert "merged (average)" in text and "  rule: average" in text
    assert "**To be written:** the risk management system (Article 9)." in text
    bare = write_card(card(model=None, signed=False))
    assert "this version's model is not published" in bare and "the model is not signed" in bare


def test_a_plan_states_the_purpose() -> None:
    report = document()
    assert report["plan"] is not None
    stated = write_card(card())
    assert report["plan"]["intended_use"] in stated and "what it is for" not in stated
    without = {**report, "plan": None}
    assert "no plan is in force" in write_card(card(change=without))
    assert "**To be written:** what it is for" in write_card(card(change=without))


def test_what_was_forgotten_is_named() -> None:
    assert "taken out again" not in write_card(card())
    forgotten = {"batches": ["e" * 64], "classes": ["wart"]}
    text = write_card(card(forgotten=forgotten))
    assert f"Learnt once and taken out again: wart, {'e' * 64}." in text


@pytest.mark.parametrize("name", ["b & <w>", "learn a|b"])
def test_names_are_shown_as_they_are(name: str) -> None:
    text = write_card(card())
    assert re.sub(r"([<>|])", r"\\\1", name) in text and name not in text


def test_what_it_says_of_the_unknown() -> None:
    text = " ".join(write_card(card()).split())
    assert "of none of these classes, by its answer or how the image looks: of at most 5 %" in text
    assert "of the other half's images 4.3 % are called so, wrongly." in text
    assert "of 9.9 % of the class's images on average, and of 9.9 % of the worst's" in text
    assert "may still be of a class that it has not learnt" in text
    never = write_card(card(unknown=None))
    assert "It cannot say that" in never and "unless the set is empty" in never
    change = document()
    honesty = change["judgement"]["honesty"]
    assert honesty is not None
    del honesty["alarms"], honesty["classes"]["nevus"]["found"]  # type: ignore[misc]
    assert "wrongly has not been measured." in write_card(card(change=change))


def test_groups_of_people_are_shown_where_they_are_kept() -> None:
    text = write_card(card())
    assert "| A | 20 | 8 | 50.0 | -25.0 (+0.0 to -15.0) |" in text
    assert "| not given | 1 | 1 | 100.0 | too few to judge |" in text
    assert "**To be written:** foreseeable wrong outcomes" in text
    report = document()
    report["judgement"]["subgroups"] = {}
    bare = write_card(card(change=report))
    assert "the learner keeps no sex, age or site" in bare
    settings = Config.model_validate({"retention": {"subgroups": ["sex"]}}).model_dump(mode="json")
    assert "(no test image with sex)" in write_card(card(change=report, settings=settings))


def test_groups_of_classes_are_shown_where_they_are_known() -> None:
    assert "Classes taken together" not in write_card(card())
    report = document(hierarchy="p.csv, SHA-256 1234")
    report["judgement"]["hierarchy"] = by_group()  # type: ignore[typeddict-item]
    text = write_card(card(change=report))
    assert "Classes taken together, by p.csv, SHA-256 1234: the share" in text
    row = r"| \<malignant\> | melanoma, carcinoma | 20 | 90.0 (70.0 to 100.0) |"
    assert row in text.splitlines()
    assert "| rare | wart | 20 | - |" in text.splitlines()
