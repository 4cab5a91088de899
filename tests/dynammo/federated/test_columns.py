"""What leaves a site of its columns: counts that add up, and none of fewer than k patients."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynammo.clinical import NO_COUNTS, Counts, add, count, nothing
from dynammo.config import ClinicalConfig
from dynammo.data.samples import Sample
from dynammo.errors import DataError
from dynammo.federated.columns import SiteColumns, columns_told, packed, unpacked
from dynammo.federated.merge import add_columns

K = 3
ASKED = ClinicalConfig(categories=["sex"], numbers=["age"])
Row = tuple[str, str, str]  # class, sex, age


def samples(rows: list[Row], patients: Mapping[int, str] | None = None) -> list[Sample]:
    """An image a row, of a patient of its own unless `patients` says otherwise."""
    return [
        Sample(f"{n}.png", "train", label, (patients or {}).get(n), f"{n}", columns)
        for n, (label, sex, age) in enumerate(rows)
        for columns in [(("sex", sex), ("age", age))]
    ]


def told(rows: list[Row], patients: Mapping[int, str] | None = None) -> SiteColumns:
    return columns_told(samples(rows, patients), ["a", "b"], ASKED, K)


def counted(rows: list[Row], classes: str = "ab") -> Counts:
    columns = {"sex": [row[1] for row in rows], "age": [row[2] for row in rows]}
    labels = [classes.index(row[0]) for row in rows]
    return count(columns, labels, len(classes), ["sex"], ["age"])


def test_what_too_few_patients_have_is_as_an_empty_cell() -> None:
    rows = [("a", "f", "40")] * 4 + [("a", "m", "")] * 2 + [("a", "x", "")] + [("b", "m", "70")] * 2
    empty = [("a", "f", "40")] * 4 + [("a", "", "")] * 3 + [("b", "", "")] * 2
    found = told(rows)
    assert found.counts == counted(empty)
    assert found.counts["categories"] == {"sex": {"f": [4, 0]}}
    assert found.fewest == {"sex": 4, "age": 4}
    assert found.held_back == {"sex": {"a": ["x", "m"], "b": ["m"]}, "age": {"b": ["all"]}}


def test_one_value_that_stays_does_not_follow_from_the_rest() -> None:
    """Of 10 images 8 f are told: then the 2 others are m, unless the next value stays with it."""
    found = told([("a", "f", "")] * 8 + [("a", "m", "")] * 2)
    assert found.held_back == {"sex": {"a": ["m", "f"]}}
    assert found.counts == nothing(2) and not found.fewest and not found.names
    found = told([("a", "f", "")] * 8 + [("a", "m", "")] * 2 + [("a", "x", "")] * 4)
    assert found.counts["categories"] == {"sex": {"f": [8, 0]}}
    # All values are of enough patients: nothing stays.
    found = told([("a", "f", "")] * 8 + [("a", "m", "")] * 3)
    assert found.counts["categories"] == {"sex": {"f": [8, 0], "m": [3, 0]}}
    assert found.held_back == {} and found.fewest == {"sex": 3}


def test_a_patient_of_several_images_counts_once() -> None:
    rows = [("a", "f", "40")] * 6
    assert told(rows, dict.fromkeys(range(5), "p")).counts == nothing(2)  # two patients
    three = told(rows, dict.fromkeys(range(4), "p"))
    assert three.counts == counted(rows) and three.fewest == {"sex": 3, "age": 3}


ROWS = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["f", "m", "x", ""]), st.sampled_from("5")),
    max_size=25,
)


@given(ROWS)
def test_no_count_is_of_fewer_patients_and_none_follows(rows: list[Row]) -> None:
    found = told(rows)
    for place, label in enumerate("ab"):
        seen = {v: own[place] for v, own in found.counts["categories"].get("sex", {}).items()}
        assert not {images for images in seen.values() if 0 < images < K}
        stay = found.held_back.get("sex", {}).get(label, [])
        hidden = sum(own == label and sex in stay for own, sex, _ in rows)
        assert hidden == 0 or hidden >= K or not any(seen.values())


def test_sites_add_up_to_what_a_learner_counts() -> None:
    """Of the same batches one after another: equal, also in the last digit of a sum."""
    first = [("b", "f", "0.1")] * 3 + [("a", "m", "0.7")] * 4
    second = [("a", "f", "0.3")] * 5 + [("c", "m", "1e9")] * 3
    none = [("d", "", "")] * 4
    parts = [(["a", "b"], counted(first)), (["a", "c"], counted(second, "ac")), (["d"], None)]
    learner = add(NO_COUNTS, counted(first), [0, 1], 2)
    learner = add(learner, counted(second, "ac"), [0, 2], 3)
    learner = add(learner, counted(none, "d"), [3], 4)
    assert add_columns(parts) == learner
    assert learner["categories"] == {"sex": {"f": [5, 3, 0, 0], "m": [4, 0, 3, 0]}}
    # Without one of them it is as if that site had never sent anything.
    assert add_columns([parts[0], parts[2]]) == counted([*first, *none], "abd")


def received(
    tables: dict[str, torch.Tensor], values: dict[str, list[str]], images: int = 9
) -> Counts:
    return unpacked(tables, values, ASKED, 2, images, K)


def test_what_is_sent_arrives() -> None:
    rows = [("a", "m", "0.1")] * 3 + [("a", "f", "33.3")] * 3 + [("b", "f", "")] * 3
    counts = told(rows).counts
    tables, values = packed(counts)
    assert values == {"sex": ["f", "m"]}
    assert received(tables, values) == counts == counted(rows)
    assert received({}, {}) == nothing(2)


@pytest.mark.parametrize(
    ("tables", "values"),
    [
        ({"sex": [[3, 0]]}, {}),
        ({}, {"sex": ["f"]}),
        ({"site": [[3, 0]]}, {"site": ["f"]}),
        ({"sex": [[3, 0]]}, {"sex": ["f", "m"]}),
        ({"sex": [[3, 0, 0]]}, {"sex": ["f"]}),
        ({"sex": [[3.0, 0.0]]}, {"sex": ["f"]}),
        ({"age": [[3, 0], [9, 0], [27, 0]]}, {}),
        ({"age": [[3.0, 0.0], [9.0, 0.0]]}, {}),
    ],
)
def test_other_columns_than_were_asked_for_are_refused(
    tables: dict[str, list[list[float]]], values: dict[str, list[str]]
) -> None:
    sent = {name: torch.tensor(own) for name, own in tables.items()}
    sent |= {"age": sent["age"].double()} if len(tables.get("age", ())) == 2 else {}
    with pytest.raises(DataError, match="other columns"):
        received(sent, values)


@pytest.mark.parametrize(
    ("name", "table", "texts"),
    [
        ("sex", [[-3, 3]], ["f"]),
        ("sex", [[2, 3]], ["f"]),  # of fewer than k
        ("sex", [[5, 5]], ["f"]),  # more than there are images
        ("sex", [[0, 0]], ["f"]),
        ("sex", [[3, 0], [0, 3]], ["f", "f"]),
        ("sex", [[3, 0]], [""]),
        ("sex", [[3, 0]], ["f" * 33]),
        ("age", [[2.0, 0], [9, 0], [41, 0]], None),
        ("age", [[3.5, 0], [9, 0], [41, 0]], None),
        ("age", [[3.0, 0], [9, 1], [41, 0]], None),
        ("age", [[3.0, 0], [9, 0], [41, 1]], None),
        ("age", [[3.0, 0], [9, 0], [26, 0]], None),  # three of mean 3: squares of 27 at least
        ("age", [[3.0, 0], [float("nan"), 0], [27, 0]], None),
    ],
)
def test_counts_that_cannot_be_are_refused(
    name: str, table: list[list[float]], texts: list[str] | None
) -> None:
    sent = {name: torch.tensor(table, dtype=torch.int64 if texts else torch.float64)}
    with pytest.raises(DataError, match="columns that cannot be"):
        received(sent, {name: texts} if texts else {})
