"""What columns beside the image say: counted exactly, and worth what naive Bayes says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynammo.clinical import PRIOR, Counts, Evidence, add, chosen, count, evidence, read_rows
from dynammo.errors import CheckpointError, DataError

CATEGORIES, NUMBERS = ["sex"], ["age"]
KNOWN = Evidence(1.0, {"sex": {"f": [0.0, -1.0]}}, {"age": [[50.0, 70.0], [100.0, 400.0]]})


def counted(rows: list[tuple[str, str, int]], classes: int) -> Counts:
    columns = {"sex": [row[0] for row in rows], "age": [row[1] for row in rows]}
    return count(columns, [row[2] for row in rows], classes, CATEGORIES, NUMBERS)


def test_values_are_counted_class_by_class() -> None:
    rows = [("f", "40", 0), ("f", "", 1), ("", "60", 1), ("m", "50.5", 1)]
    assert counted(rows, 2) == {
        "classes": 2,
        "categories": {"sex": {"f": [1, 1], "m": [0, 1]}},
        "numbers": {"age": [[1, 2], [40, 110.5], [1600, 6150.25]]},
    }


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["f", "m", ""]), st.sampled_from(["", "30", "65"]), st.integers(0, 2)
    ),
    max_size=20,
)


@given(ROWS, ROWS)
def test_batches_add_up_and_can_be_taken_out(
    first: list[tuple[str, str, int]], second: list[tuple[str, str, int]]
) -> None:
    """In any order; the classes of a batch may stand elsewhere among all."""
    later = [(sex, age, label + 2) for sex, age, label in second]  # classes 2, 3, 4 of five
    together = add(counted(first, 3), counted(second, 3), [2, 3, 4], 5)
    same = evidence(counted(first + later, 5), ["sex", "age"], 1.0)
    found = evidence(together, ["sex", "age"], 1.0)
    assert found.categories == same.categories
    assert found.numbers.keys() == same.numbers.keys()
    for name, pair in same.numbers.items():
        np.testing.assert_allclose(found.numbers[name], pair)
    left = chosen(together, [0, 1])
    alone = counted([row for row in first if row[2] < 2], 2)
    if first and not any(row[2] == 2 for row in first):
        assert left["numbers"] == alone["numbers"]
    assert left["categories"].get("sex", {}) == {
        value: own for value, own in alone["categories"]["sex"].items() if any(own)
    }


def test_what_a_category_says_is_worked_by_hand() -> None:
    """Class 0: three f of four; class 1: one of two; mean shares 0.625 and 0.375."""
    rows = [("f", "", 0)] * 3 + [("m", "", 0)] + [("f", "", 1), ("m", "", 1)]
    found = evidence(counted(rows, 2), ["sex"], 0.75)
    assert PRIOR == 10
    np.testing.assert_allclose(
        found.categories["sex"]["f"], np.log([(3 + 6.25) / 14, (1 + 6.25) / 12])
    )
    assert sum(math.exp(own[0]) for own in found.categories["sex"].values()) == pytest.approx(1)
    logs = found.logs({"sex": ["f", "", "x"]}, 3, 2)
    np.testing.assert_allclose(logs[0], 0.75 * np.array(found.categories["sex"]["f"]))
    assert not logs[1:].any()  # missing, and never seen: nothing is said


def test_what_a_number_says_is_worked_by_hand() -> None:
    """Ages 40, 60 and 70, 90: scatter 200 each, so that the variance is 100 whatever the prior."""
    rows = [("", age, label) for age, label in (("40", 0), ("60", 0), ("70", 1), ("90", 1))]
    found = evidence(counted(rows, 2), ["age"], 1.0)
    assert found.numbers == {"age": [[50, 80], [100, 100]]}
    logs = found.logs({"age": ["50", ""]}, 2, 2)
    assert logs[0, 0] - logs[0, 1] == pytest.approx(900 / 200)
    assert not logs[1].any()


ROWS_OF_TWO = [("f", "20", 0)] * 9 + [("m", "24", 0)] + [("f", "80", 1)] + [("m", "84", 1)] * 9
SAID = {"sex": ["f", "m", "", "f"], "age": ["22", "50", "50", ""]}


@pytest.mark.parametrize("places", [[0, 1, 2], [1, 2, 0], [0, 2, 1]])
def test_a_class_without_values_neither_gains_nor_loses(places: list[int]) -> None:
    """Whatever the columns say: both agree, contradict each other, or lie between the classes."""
    rows = [(sex, age, places[label]) for sex, age, label in ROWS_OF_TWO]
    found = evidence(counted(rows, 3), ["sex", "age"], 0.75)
    assert found.uncounted == {"sex": [places[2]], "age": [places[2]]}
    image = np.random.default_rng(0).dirichlet([1, 1, 1], 4)
    fused = found.fused(image, SAID)
    np.testing.assert_allclose(fused[:, places[2]], image[:, places[2]])
    # The other two share the rest as if they were alone.
    two = evidence(counted(ROWS_OF_TWO, 2), ["sex", "age"], 0.75)
    alone = two.fused(image[:, places[:2]], SAID)
    rest = 1 - image[:, places[2], None]
    np.testing.assert_allclose(fused[:, places[:2]], rest * alone)
    assert np.abs(fused - image).max() > 0.1
    certain = np.eye(3)[[places[2]] * 4]  # nothing is left to share
    np.testing.assert_array_equal(found.fused(certain, SAID), certain)


def test_a_column_tells_nothing_of_a_class_beside_what_the_others_have_told() -> None:
    rows = [*ROWS_OF_TWO, *[("f", "", 2)] * 5, *[("m", "", 2)] * 5]
    found = evidence(counted(rows, 3), ["sex", "age"], 1.0)
    assert found.uncounted == {"age": [2]}
    image = np.random.default_rng(1).dirichlet([1, 1, 1], 4)
    by_sex = found.fused(image, {"sex": SAID["sex"]})
    assert np.abs(by_sex - image).max() > 0.1
    both = found.fused(image, SAID)
    np.testing.assert_allclose(both[:, 2], by_sex[:, 2])
    turned = found._replace(categories={}, numbers={**found.numbers})
    np.testing.assert_allclose(turned.fused(by_sex, SAID), both)


@pytest.mark.parametrize("ages", [["50"] * 4, [""] * 4])
def test_a_number_that_never_differs_says_nothing(ages: list[str]) -> None:
    rows = [("", age, label) for age, label in zip(ages, (0, 0, 1, 1), strict=True)]
    assert evidence(counted(rows, 2), ["age"], 1.0).numbers == {}


def test_classes_of_one_value_each_have_a_variance() -> None:
    rows = [("", age, label) for age, label in (("50", 0), ("50", 0), ("60", 1), ("60", 1))]
    means, variances = evidence(counted(rows, 2), ["age"], 1.0).numbers["age"]
    assert means == [50, 60] and min(variances) > 0


def test_columns_that_are_not_gone_by_are_left_out() -> None:
    rows = [("f", "40", 0), ("m", "60", 1)]
    assert evidence(counted(rows, 2), ["sex"], 1.0).names == ["sex"]


def test_probabilities_are_fused() -> None:
    shares = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
    fused = KNOWN.fused(shares, {"sex": ["f", "", "f"]})
    np.testing.assert_allclose(fused[0], [1 / (1 + math.exp(-1)), 1 / (1 + math.e)])
    np.testing.assert_allclose(fused[1:], shares[1:])  # nothing known; and certain it stays
    with pytest.raises(DataError, match=r"^age: 'old' is no number$"):
        KNOWN.fused(shares, {"age": ["old", "", ""]})


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 0},
        {"weight": "1"},
        {"categories": {"sex": {"f": [0.0]}}},
        {"categories": {"sex": {"f": [0.0, float("nan")]}}},
        {"numbers": {"age": [[50.0, 70.0], [100.0, 0.0]]}},
        {"numbers": {"age": [[50.0, 70.0]]}},
        {"numbers": None},
        {"uncounted": {"size": [0]}},
        {"uncounted": {"age": [2]}},
        {"uncounted": {"age": [0, 1]}},
        {"uncounted": None},
        {"more": 1},
    ],
)
def test_a_damaged_document_is_refused(change: dict[str, Any]) -> None:
    document = {**KNOWN._asdict(), **change}
    assert Evidence.read(KNOWN._asdict(), 2) == KNOWN
    with pytest.raises(CheckpointError, match="clinical: expected"):
        Evidence.read(document, 2)


def test_a_csv_is_read_by_file(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("\ufefffile,age,other\na/1.png, 55 ,x\n2.png,,\n")
    assert read_rows(path, KNOWN) == {
        tmp_path / "a/1.png": {"age": "55"},
        tmp_path / "2.png": {"age": ""},
    }
    path.write_text("file,age\n1.png,old\n1.png,4\n")
    with pytest.raises(DataError) as caught:
        read_rows(path, KNOWN)
    assert caught.value.problems == [
        f"{path} line 2: age: 'old' is no number",
        f"{path} line 3: 1.png is listed already",
    ]
    path.write_text("image,age\n1.png,4\n")
    with pytest.raises(DataError, match="expected the column file, got image,age"):
        read_rows(path, KNOWN)
    with pytest.raises(DataError, match="cannot read"):
        read_rows(tmp_path / "absent.csv", KNOWN)
