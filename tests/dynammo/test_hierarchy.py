"""Costs and groups of a hierarchy of five classes, by hand, and what must always hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynammo.evaluation.metrics import mean_class_recall
from dynammo.hierarchy import (
    ancestors,
    costs,
    groups,
    mean_cost,
    problems_of_parents,
    unnamed,
    within,
)

#   malignant (2)                    benign (2)                 wart (0)
#   |-- melanocytic tumour (1)       |-- naevus-like (1)
#   |   |-- melanoma                 |   |-- naevus
#   |-- carcinoma                    |-- keratosis
#
# In brackets the heights. Three trees: the root above them has height 3.
PARENTS = {
    "melanoma": "melanocytic tumour",
    "melanocytic tumour": "malignant",
    "carcinoma": "malignant",
    "naevus": "naevus-like",
    "naevus-like": "benign",
    "keratosis": "benign",
}
CLASSES = ["melanoma", "carcinoma", "naevus", "keratosis", "wart"]


def test_costs_are_heights_of_the_lowest_common_ancestor() -> None:
    near = 2 / 3  # malignant or benign, of height 2 of 3
    expected = [
        [0, near, 1, 1, 1],
        [near, 0, 1, 1, 1],
        [1, 1, 0, near, 1],
        [1, 1, near, 0, 1],
        [1, 1, 1, 1, 0],
    ]
    np.testing.assert_allclose(costs(PARENTS, CLASSES), expected)


def test_a_root_that_is_named_is_the_root() -> None:
    rooted = {**PARENTS, "malignant": "tumour", "benign": "tumour"}
    four = CLASSES[:4]
    np.testing.assert_allclose(costs(rooted, four), costs(PARENTS, four))
    # A class beside it makes a root above: 2, 3 and 4 of 4.
    table = costs(rooted, CLASSES)
    assert table[0].tolist() == [0, 0.5, 0.75, 0.75, 1]
    # What is not learnt yet counts for heights all the same.
    assert costs(rooted, ["melanoma", "carcinoma"])[0, 1] == pytest.approx(2 / 3)


def test_the_mean_cost_by_hand() -> None:
    # melanoma: right, carcinoma (2/3), naevus (1); keratosis: naevus (2/3); wart: right.
    targets, said = np.array([0, 0, 0, 3, 4]), np.array([0, 1, 2, 2, 4])
    table = costs(PARENTS, CLASSES)
    assert mean_cost(targets, said, table) == pytest.approx(((0 + 2 / 3 + 1) / 3 + 2 / 3 + 0) / 3)
    assert np.isnan(mean_cost(targets[:0], said[:0], table))


def test_groups_by_hand() -> None:
    assert groups(PARENTS, CLASSES) == {
        "melanocytic tumour": [0],
        "malignant": [0, 1],
        "naevus-like": [2],
        "benign": [2, 3],
    }
    # One that holds all that is known says nothing, and one that holds none neither.
    assert groups(PARENTS, ["melanoma", "carcinoma"]) == {"melanocytic tumour": [0]}
    targets, said = np.array([0, 0, 1, 2, 2, 4]), np.array([1, 3, 1, 0, 3, 0])
    assert within(targets, said, [0, 1]).tolist() == [True, False, True]
    assert within(targets, said, [2, 3]).tolist() == [False, True]


def test_what_is_above_and_what_is_not_named() -> None:
    assert ancestors(PARENTS, "melanoma") == ["melanocytic tumour", "malignant"]
    assert ancestors(PARENTS, "wart") == []
    assert unnamed(PARENTS, CLASSES) == ["wart"]


@pytest.mark.parametrize(
    ("parents", "problem"),
    [
        ({"a": "a"}, "'a' is below 'a': a circle"),
        ({"x": "a", "a": "b", "b": "c", "c": "a"}, "'a' is below 'b' is below 'c' is below 'a'"),
        ({"a": "=1"}, "'=1' would be a formula"),
        ({"a": "b\u200b"}, "has characters that do not show"),
        ({}, "no class has a parent"),
    ],
)
def test_what_is_no_hierarchy(parents: dict[str, str], problem: str) -> None:
    (found,) = problems_of_parents(parents)
    assert problem in found


def test_what_is_a_hierarchy_has_no_problem() -> None:
    assert problems_of_parents(PARENTS) == []


@st.composite
def trees(draw: st.DrawFn) -> tuple[dict[str, str], list[str]]:
    """Up to seven classes below up to five groups, or below none."""
    above = [f"group {n}" for n in range(draw(st.integers(1, 5)))]
    parents = {}
    for place, name in enumerate(above[1:], start=1):
        if draw(st.booleans()):
            parents[name] = above[draw(st.integers(0, place - 1))]
    classes = [f"class {n}" for n in range(draw(st.integers(1, 7)))]
    for name in classes:
        if draw(st.integers(0, 3)):
            parents[name] = draw(st.sampled_from(above))
    return parents, classes


@given(trees())
def test_costs_are_a_distance_by_which_the_two_nearest_decide(
    tree: tuple[dict[str, str], list[str]],
) -> None:
    parents, classes = tree
    table = costs(parents, classes)
    assert ((table == 0) == np.eye(len(classes), dtype=bool)).all()
    assert (table == table.T).all() and table.max() <= 1
    # An ultrametric: via any third class it is no shorter, by the longer of the two ways.
    assert (table[:, None] <= np.maximum(table[:, :, None], table[None].swapaxes(1, 2))).all()
    order = [*reversed(range(len(classes)))]
    np.testing.assert_array_equal(
        costs(parents, [classes[place] for place in order]), table[order][:, order]
    )


@given(trees(), st.data())
def test_a_cost_is_no_more_than_the_share_of_wrong_answers(
    tree: tuple[dict[str, str], list[str]], data: st.DataObject
) -> None:
    parents, classes = tree
    label = st.integers(0, len(classes) - 1)
    pairs = data.draw(st.lists(st.tuples(label, label), min_size=1, max_size=20))
    targets, said = np.array(pairs).T
    wrong = 1 - mean_class_recall(targets, said, len(classes))
    assert mean_cost(targets, said, costs(parents, classes)) <= wrong + 1e-12
    # Where nothing belongs together every error costs 1.
    flat: Any = {"another": "group"}
    assert mean_cost(targets, said, costs(flat, classes)) == pytest.approx(wrong)
    for members in groups(parents, classes).values():
        inside = np.isin(targets, members)
        assert within(targets, said, members).sum() >= (targets == said)[inside].sum()
