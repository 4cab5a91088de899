"""The change report: what its first page says, and that it holds no more than the document."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex

from dynammo.reporting import figures
from dynammo.reporting.change import (
    ChangeReport,
    Flip,
    grouped,
    nearest,
    reasons,
    recalls,
    sentence,
    trusted,
    verdict,
    write_change,
)

NEW = "b & <w>"


def interval(value: float, images: int = 20) -> dict[str, Any]:
    ends = {"low": max(0, value - 0.2), "high": min(1, value + 0.1)}
    return {"images": images, "groups": images, "value": value, **ends}


def change(old: float, new: float, flips: int) -> dict[str, Any]:
    ends = {"difference": new - old, "low": new - old - 0.1, "high": new - old + 0.1}
    counts = {"images": 20, "groups": 20, "negative_flips": flips}
    return {"old": old, "new": new, **ends, **counts}


def requirement(name: str, limit: float, own: dict[str, Any], verdict: str) -> dict[str, Any]:
    if verdict == "met":
        own = {**own, "low": limit + 0.01}
    return {
        "name": name,
        "requirement": f"{name.partition('.')[0]} for {name.partition('.')[2]}, at least",
        "limit": limit,
        "measured": own,
        "verdict": verdict,
        "detail": f"{own['value']:.3f}",
        "evidence": ["e" * 64],
    }


def document(outcome: str = "failed", **more: Any) -> ChangeReport:
    compared = {
        "classes": {"nevus": change(0.9, 0.7, 5)},
        "overall": change(0.9, 0.7, 5),
        "not_measurable": [],
    }
    met = "met" if outcome == "passed" else "not met"
    judgement = {
        "outcome": outcome,
        "plan": {"path": "plan-1.json", "sha256": "f" * 64},
        "authorised": 1,
        "champion": 2,
        "outside": ["class b is not named"] if outcome == "outside" else [],
        "requirements": [
            requirement("sensitivity.nevus", 0.6, interval(0.7), met),
            requirement(f"sensitivity.{NEW}", 0.5, interval(0.8), "met"),
        ],
        "confidence": 0.9,
        "classes": {
            "nevus": {"new": interval(0.7), "old": interval(0.9)},
            NEW: {"new": interval(0.8), "old": None},
        },
        "subgroups": {
            "<site>": {
                "A": {"images": 20, "groups": 8, "recall": 0.5, "change": interval(-0.25)},
                "": {"images": 1, "groups": 1, "recall": 1.0, "change": None},
            }
        },
        "comparison": compared,
        "cumulative": compared,
        "honesty": {
            "miss": 0.1,
            "alarm": 0.05,
            "by_class": False,
            "alarms": {"share": 0.043, "by_answer": 0.021, "by_appearance": 0.024},
            "classes": {
                "nevus": {
                    "images": 20,
                    "coverage": 0.912,
                    "set_size": 1.5,
                    "false_alarms": None,
                    "found": 0.099,
                    "as_unknown": 0.71,
                    "calibration": 0.0437,
                }
            },
        },
    }
    report: Any = {
        "learner": "skin",
        "version": 3,
        "parent": 2,
        "operation": f"learn {NEW}",
        "at": "2027-01-01T00:00:00+00:00",
        "passed": outcome == "passed",
        "waits": False,
        "modifications": ["add_named_class"],
        "judgement": judgement,
        "plan": {
            "limits": {},
            "device": "Lesions",
            "intended_use": "second reader",
            "named": [{"name": NEW}],
            "modifications": ["add_named_class"],
            "rollback": {"to": "authorised", "when": "complaints"},
            "signatures": ["A. Example, 2027"],
        },
        "hierarchy": None,
        "batches": [{"number": 3, "hash": "d" * 64, "train_images": 9, "test_images": 4}],
        "evidence": {"f" * 64: "objects/plan-1.json", "e" * 64: "objects/predictions-1.json"},
        "standing": [],
        "rollback": 1,
        "retention": "images",
        "gone": [],
        "taken_for": {"nevus": {NEW: 4, "wart": 1, "mole": 1}},
        "software": {"torch": "2"},
        "notes": [],
        **more,
    }
    return report


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DPI", 40)


def test_the_page_is_self_contained_escaped_and_complete(tmp_path: Path) -> None:
    html = write_change(document(), tmp_path / "3.html").read_text("utf-8")
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", html)
    assert len(links) == 1 and links[0].startswith("data:image/png;base64,")
    plain = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    for outside in ("http://", "https://", "url(", "@import", "<script", "<link", "<w>"):
        assert outside not in plain
    for part in (
        "b &amp; &lt;w&gt;",
        "Not passed",
        "90.0 (70.0 to 100.0)",
        "-20.0 (-30.0 to -10.0)",
        "<code>dynammo rollback skin 1</code>",
        "4 for b &amp; &lt;w&gt;, 1 for mole and 1 for wart",
        "complaints",
        "A. Example, 2027",
        "f" * 64,
        "is the 90 % interval",
        "<li>nevus: 70.0 % of its images are found",
        "Version 1 was authorised",
        "91.2",
        "By &lt;site&gt;",
        "too few to judge",
    ):
        assert part in plain
    assert "nan" not in plain.lower().split()


def test_the_json_is_the_document(tmp_path: Path) -> None:
    write_change(document(), tmp_path / "3.html")
    assert json.loads((tmp_path / "3.json").read_text()) == {"format": 1, **document()}


def test_the_same_document_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_change(document(), tmp_path / f"{n}.html") for n in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_pictures_are_in_the_page_and_not_in_the_json(tmp_path: Path) -> None:
    flips: list[Flip] = [
        {"actual": "nevus", "before": "wart", "now": "nevus", "png": b"gained"},
        {"actual": "nevus", "before": "nevus", "now": NEW, "png": b"picture"},
    ]
    own = document()
    assert own["judgement"]["comparison"] is not None
    own["judgement"]["comparison"]["classes"]["mole"] = change(0.9, 0.9, 0)  # type: ignore
    page = written(own, tmp_path / "3.html", flips)
    heading, lost, gained = (
        page.index(part)
        for part in (
            "<h3>nevus: 5 no longer right, 1 newly right</h3>",
            "now taken for b &amp; &lt;w&gt;",
            "right now, was taken for wart",
        )
    )
    assert heading < page.index("data:image/png;base64,cGljdHVyZQ==") < lost < gained
    assert "<p>No longer right: 5 of nevus. Newly right: 1 of nevus.</p>" in page
    assert "<h3>mole" not in page and "<p>mole: none.</p>" in page
    assert "cGljdHVyZQ" not in (tmp_path / "3.json").read_text()
    without = written(own, tmp_path / "4.html")
    assert "<h3>nevus: 5 no longer" in without and "cGljdHVyZQ" not in without


def test_what_the_first_page_says() -> None:
    assert sentence(document()) == (
        f"Version 3 of skin adds {NEW} to version 2. Of what is new, it finds 80.0 % of 20 test "
        f"images of {NEW}. Of the classes that both know it finds 70.0 % of the test images, each "
        "class weighing the same; version 2 finds 90.0 %. Of these 20 images, 5 were right before "
        "and are wrong now, and 1 the other way round."
    )
    less = document()
    less["gone"] = ["wart", "scar"]
    less["taken_for"] = {"wart": {NEW: 4, "burn": 2, "mole": 2, "nevus": 9, "corn": 1}}
    assert sentence(less).startswith(
        f"Version 3 of skin adds {NEW} to version 2. It can no longer name wart and scar: such an "
        "image is called something else, or of no known class. Of 18 test images of wart, it takes "
        f"9 for nevus, 4 for {NEW}, 2 for burn, 2 for mole and 1 for others. Of what is new, it "
    )
    assert verdict(document()) == (
        "This kind of change was agreed on, but a limit of the plan is not kept: version 2 stays "
        "in use."
    )
    assert reasons(document()) == [
        "nevus: 70.0 % of its images are found; the lower end of the interval is 50.0 % and must "
        "reach 60.0 %"
    ]
    few = document()
    few["judgement"]["requirements"][0]["measured"] = None
    assert reasons(few) == ["sensitivity for nevus, at least 0.6: 0.700"]
    assert reasons(document("passed")) == []
    assert [nearest(document(outcome)) for outcome in ("failed", "passed")] == [
        "",
        "nevus: 70.0 % of its images are found; the lower end of the interval is 61.0 % and must "
        "reach 60.0 %",
    ]
    assert verdict(document("passed")) == (
        "This kind of change was agreed on, and every limit of the plan is kept: version 3 was not "
        "put into use."
    )
    assert verdict(document("outside")) == (
        "This kind of change was not agreed on: version 2 stays in use."
    )
    assert reasons(document("outside")) == ["class b is not named", *reasons(document())]
    many = document("outside")
    many["judgement"]["outside"] = list("abcde")
    assert reasons(many) == ["a", "b", "c", "and 3 more"]
    without = document()
    without["judgement"] = {**without["judgement"], "plan": None, "comparison": None}
    assert sentence(without) == (
        f"Version 3 of skin knows nevus and {NEW}. It finds 75.0 % of their test images, each "
        "class weighing the same."
    )
    assert verdict(without).startswith("No plan is in force; not every limit of the settings is")


def test_how_often_an_answer_is_right_is_counted(tmp_path: Path) -> None:
    """nevus: 14 of its 20 are found, and no other is taken for it; 16 of the new class's 20, and 4
    of nevus.
    """
    own = document()
    assert trusted(own) == {"nevus": (14, 1.0), NEW: (20, 16 / 20)}
    page = written(own, tmp_path / "3.html")
    assert "<td>14: 100.0</td>" in page and "<td>20: 80.0</td>" in page
    own["taken_for"] = {}
    assert trusted(own) == {} and "<td>14: " not in written(own, tmp_path / "4.html")


def test_who_put_a_version_into_use_is_said(tmp_path: Path) -> None:
    waiting = document("passed", waits=True)
    assert verdict(waiting).endswith(
        "kept. Version 3 waits for a person to run dynammo promote skin 3; until then version 2 "
        "stays in use."
    )
    back = "To go back to version 1: <code>dynammo rollback skin 1</code>"
    page = written(waiting, tmp_path / "3.html")
    assert "<strong>Passed, waits for a person</strong>" in page and back in page
    assert back not in written(document(), tmp_path / "3.html")  # it was never in use
    then = {"version": 3, "at": "2027-01-02T08:00:00+00:00", "reason": "the ward needs it"}
    in_use = {**then, "until": None, "then": None}
    assert verdict(document("failed", standing=[in_use])).endswith(
        "not kept: version 3 came into use on 2027-01-02 all the same, for this reason: the ward "
        "needs it."
    )
    replaced = {**then, "reason": None, "until": "2027-01-05T08:00:00+00:00", "then": 1}
    assert verdict(document("passed", standing=[replaced])).endswith(
        "kept: version 3 came into use on 2027-01-02. Since 2027-01-05 version 1 is in use instead."
    )


def test_a_class_that_fails_is_drawn_in_another_colour() -> None:
    def colours(report: ChangeReport) -> dict[float, str]:
        lines = recalls(report).axes[0].lines
        points = [line for line in lines if line.get_marker() == "o"]
        return {
            round(float(line.get_xdata()[0])): to_hex(line.get_color()).upper()  # type: ignore
            for line in points
        }

    assert colours(document()) == {90: "#666666", 70: "#D55E00", 80: "#0072B2"}
    assert colours(document("passed"))[70] == "#0072B2"


def test_the_plan_says_how_many_images_a_subgroup_needs(tmp_path: Path) -> None:
    report = document()
    assert report["plan"] is not None
    limits = {"subgroups": [{"column": "<site>", "gap": 0.1, "images": 21}]}
    plan = {**report["plan"], "limits": limits}
    html = write_change({**report, "plan": plan}, tmp_path / "3.html").read_text("utf-8")
    assert html.count("<td>too few to judge</td>") == 2


def test_a_version_from_before_subgroups_has_a_report(tmp_path: Path) -> None:
    report = document()
    del report["judgement"]["subgroups"]  # type: ignore[misc]
    assert "Subgroups (site, sex, age) are not compared" in write_change(
        report, tmp_path / "3.html"
    ).read_text("utf-8")


def test_what_is_said_of_unknown_is_of_both_limits(tmp_path: Path) -> None:
    own = document()
    page = written(own, tmp_path / "a.html")
    assert (
        "It was said of 4.3 %: of 2.1 % because" in page and "of 2.4 % because the picture" in page
    )
    honesty = own["judgement"]["honesty"]
    assert honesty is not None
    honesty["alarms"] = {"share": None, "by_answer": None, "by_appearance": None}
    assert "Too few images to measure how often" in written(own, tmp_path / "b.html")
    del honesty["alarms"], honesty["classes"]["nevus"]["found"]  # type: ignore[misc]
    before = written(own, tmp_path / "c.html")  # a version of before these were measured
    assert "It was said of" not in before


def by_group() -> dict[str, Any]:
    def group(classes: list[str], below: str | None, value: float | None) -> dict[str, Any]:
        recall = interval(value) if value is not None else {**interval(0), "value": None}
        both = {"old": 0.75, "new": 0.5} if value is not None else None
        return {"classes": classes, "below": below, "recall": recall, "both": both}

    return {
        "cost": 0.256,
        "both": {"old": 0.3, "new": 0.2},
        "groups": {
            "<malignant>": group(["melanoma", "carcinoma"], None, 0.9),
            "melanocytic": group(["melanoma"], "<malignant>", 0.8),
            "rare": group(["wart"], None, None),
        },
    }


def test_groups_of_classes_are_on_the_first_page_and_in_a_table(tmp_path: Path) -> None:
    own = document(hierarchy="p.csv, SHA-256 1234")
    assert grouped(own) == ""
    assert "Classes taken together" not in written(own, tmp_path / "a.html")
    own["judgement"]["hierarchy"] = by_group()  # type: ignore[typeddict-item]
    assert grouped(own) == (
        "Of 20 test images of <malignant> (melanoma, carcinoma), 90.0 % are answered with a class "
        "of <malignant>."
    )
    page = written(own, tmp_path / "b.html")
    assert page.index("Of 20 test images of &lt;malignant&gt;") < page.index("What was required")
    table = page[page.index("Classes taken together") :]
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", table)
    row = cells.index("melanocytic (of &lt;malignant&gt;)")
    assert cells[row + 1 : row + 7] == [
        *("melanoma", "20", "20", "80.0 (60.0 to 90.0)", "75.0", "50.0")
    ]
    row = cells.index("rare")
    assert cells[row + 4 : row + 7] == ["-", "-", "-"]
    assert "By p.csv, SHA-256 1234." in table
    assert "Hierarchical cost: 0.256" in table and "it is 0.200, and was 0.300" in table


def written(own: ChangeReport, file: Path, flips: Sequence[Flip] = ()) -> str:
    return " ".join(write_change(own, file, flips).read_text(encoding="utf-8").split())
