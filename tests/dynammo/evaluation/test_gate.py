"""The gate: comparisons by hand, intervals that cover, and what each condition lets through."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynammo.config import GateConfig
from dynammo.evaluation.gate import DRAWS, Change, Comparison, Decision, Outcome, compare, judge

CONFIG = GateConfig(min_last_recall=0.5, max_gap_to_unmerged=0.05, max_class_loss=0.1)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def outcome(
    targets: Sequence[int],
    old: Sequence[int],
    new: Sequence[int],
    groups: Sequence[str | int | None] | None = None,
    classes: Sequence[str] = ("a", "b"),
) -> Outcome:
    answers = [np.array(values, dtype=np.int64) for values in (targets, old, new)]
    return Outcome(*answers, groups if groups is not None else [None] * len(targets), classes)


def one_class(
    old: Any,
    new: Any,
    groups: Sequence[str | int | None] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Change:
    """Of one class, from which answers are right."""
    answers = (np.where(right, 0, -1).tolist() for right in (old, new))
    made = outcome([0] * len(old), *answers, groups, ["a"])
    return compare(made, seed=seed, draws=draws)["classes"]["a"]


def lost(images: int, of: int) -> Comparison:
    """A comparison of two classes: `b` loses some of its images, all right before; `a` none."""
    targets = [0] * of + [1] * of
    return compare(outcome(targets, targets, [0] * of + [0] * images + [1] * (of - images)))


# --- compare -----------------------------------------------------------------------------------


def test_a_comparison_by_hand() -> None:
    # a: right old 1 1 1 0, new 1 0 0 1; b: right old 1 0, new 1 1 (7 is a class that only new has).
    found = compare(
        outcome(
            targets=[0, 0, 0, 0, 1, 1],
            old=[0, 0, 0, 1, 1, 0],
            new=[0, 7, 1, 0, 1, 1],
            groups=["p", "p", "q", None, None, None],
            classes=["a", "b", "c"],
        )
    )
    a, b, c = found["classes"].values()
    assert (a["images"], a["groups"], a["negative_flips"]) == (4, 3, 2)
    assert (a["old"], a["new"], a["difference"]) == (0.75, 0.5, -0.25)
    assert (b["images"], b["groups"], b["negative_flips"]) == (2, 2, 0)
    assert (b["old"], b["new"], b["difference"]) == (0.5, 1.0, 0.5)
    assert list(found["classes"]) == ["a", "b", "c"]
    assert found["not_measurable"] == ["c"]
    assert c == dict.fromkeys(c) | {"images": 0, "groups": 0, "negative_flips": 0}
    overall = found["overall"]
    assert (overall["images"], overall["groups"], overall["negative_flips"]) == (6, 5, 2)
    # (3/4 + 1/2) / 2 and (1/2 + 1) / 2
    assert (overall["old"], overall["new"], overall["difference"]) == (0.625, 0.75, 0.125)
    assert json.loads(json.dumps(found)) == found


def test_an_interval_by_hand() -> None:
    """10 images of one class, k lost: (1 - k / 10)^10 of the draws have none of the k."""
    right = [True] * 10
    three = one_class(right, [False] * 3 + [True] * 7, draws=20_000)
    four = one_class(right, [False] * 4 + [True] * 6, draws=20_000)
    assert three["difference"] == pytest.approx(-0.3)
    assert three["high"] == 0.0  # 0.7^10 = 2.8 % of the draws lose nothing: above 2.5 %
    assert four["high"] == pytest.approx(-0.1)  # 0.6^10 = 0.6 %
    # Of Binomial(10, 0.4): 7 or fewer with 98.8 %, 6 or fewer with 94.5 %: the quantile is 7.
    assert four["low"] == pytest.approx(-0.7)
    same = one_class(right, right)
    assert (same["difference"], same["low"], same["high"]) == (0.0, 0.0, 0.0)


def test_an_interval_of_many_images_is_the_normal_one() -> None:
    # 400 images, 40 lost and 20 won: mean -0.05, variance (60 / 400 - 0.05^2) / 400 = 0.01921^2.
    old, new = np.ones(400, dtype=bool), np.ones(400, dtype=bool)
    new[:40], old[40:60] = False, False
    change = one_class(old, new)
    assert change["difference"] == pytest.approx(-0.05)
    assert change["low"] == pytest.approx(-0.05 - 1.96 * 0.01921, abs=0.003)
    assert change["high"] == pytest.approx(-0.05 + 1.96 * 0.01921, abs=0.003)


def test_one_group_has_no_interval() -> None:
    change = one_class([True, True], [True, False], ["p", "p"])
    assert (change["difference"], change["low"], change["high"]) == (-0.5, None, None)
    assert one_class([True, True], [True, False], [None, None])["low"] is not None
    assert one_class([True, True], [True, False], [1, "1"])["groups"] == 2


def simulated(
    random: np.random.Generator, groups: int, each: int
) -> tuple[Any, Any, list[str | int | None]]:
    """Old is right with 0.8; of new, 0.15 of the groups are lost and 0.05 won: a loss of 0.11.

    All images of a group have the same answers, the worst case of dependence: 0.8 x 0.15 are lost,
    0.2 x 0.05 are won.
    """
    old, draw = random.random(groups) < 0.8, random.random(groups)
    new = np.where(old, draw >= 0.15, draw < 0.05)
    names: list[str | int | None] = np.repeat(np.arange(groups), each).tolist()
    return np.repeat(old, each), np.repeat(new, each), names


@pytest.mark.parametrize(("grouped", "least", "most"), [(True, 0.9, 0.99), (False, 0.4, 0.8)])
def test_intervals_cover_the_true_difference_if_groups_are_drawn(
    grouped: bool, least: float, most: float
) -> None:
    """200 data sets; drawn image by image, dependent answers would make intervals too narrow."""
    random, truth, covered = np.random.default_rng(7), 0.2 * 0.05 - 0.8 * 0.15, 0
    for seed in range(200):
        old, new, groups = simulated(random, groups=80, each=4)
        change = one_class(old, new, groups if grouped else None, seed)
        assert change["low"] is not None and change["high"] is not None
        covered += change["low"] <= truth <= change["high"]
    assert least <= covered / 200 <= most


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    """1 to 30 images of 1 to 4 classes; answers may be a class that is not known to both."""
    classes = draw(st.integers(1, 4))
    image = st.tuples(
        st.integers(0, classes - 1),
        st.integers(-1, classes),
        st.integers(-1, classes),
        st.sampled_from([None, "p", "q", "r", 3]),
    )
    targets, old, new, groups = zip(*draw(st.lists(image, min_size=1, max_size=30)), strict=True)
    return outcome(targets, old, new, groups, "abcd"[:classes])


@settings(max_examples=60, deadline=None)
@given(outcomes())
def test_what_holds_of_every_comparison(made: Outcome) -> None:
    found = compare(made, draws=200)
    changes = found["classes"]
    assert sum(change["images"] for change in changes.values()) == len(made.targets)
    assert found["not_measurable"] == [n for n, change in changes.items() if not change["images"]]
    flips = (made.predicted_old == made.targets) & (made.predicted_new != made.targets)
    assert sum(change["negative_flips"] for change in changes.values()) == flips.sum()
    measured = [change["difference"] for change in changes.values() if change["images"]]
    assert found["overall"]["difference"] == pytest.approx(np.mean(measured))
    for change in (*changes.values(), found["overall"]):
        assert (change["low"] is None) == (change["groups"] < 2)
        if change["low"] is not None and change["high"] is not None:
            assert -1 <= change["low"] <= change["high"] <= 1
    again = compare(made, draws=200)
    assert again == found
    swapped = compare(made._replace(predicted_old=made.predicted_new), draws=200)
    for change in (*swapped["classes"].values(), swapped["overall"]):
        assert change["negative_flips"] == 0
        assert change["difference"] in (None, 0.0)
        assert change["low"] in (None, 0.0) and change["high"] in (None, 0.0)


@settings(max_examples=40, deadline=None)
@given(outcomes(), st.randoms(use_true_random=False))
def test_neither_order_nor_labels_matter(made: Outcome, random: Any) -> None:
    order = list(range(len(made.targets)))
    random.shuffle(order)
    names: dict[str | int | None, str | int | None] = {None: None, "p": 0, "q": "p", "r": 9, 3: "x"}
    moved = Outcome(
        made.targets[order],
        made.predicted_old[order],
        made.predicted_new[order],
        [names[made.groups[i]] for i in order],
        made.classes,
    )
    assert compare(moved, draws=100) == compare(made, draws=100)


def test_old_and_new_are_opposites() -> None:
    old, new, groups = simulated(np.random.default_rng(1), groups=30, each=2)
    there, back = one_class(old, new, groups), one_class(new, old, groups)
    assert there["difference"] is not None and there["difference"] < 0
    assert back["difference"] == -there["difference"]
    assert back["low"] == pytest.approx(-(there["high"] or 0), abs=0.04)  # other draws


def test_a_contradicting_outcome_is_refused_with_all_its_faults() -> None:
    wrong = Outcome(np.array([0, 2]), np.array([0]), np.array([0.0, 1.0]), ["p"], ["a", "a"])
    with pytest.raises(ValueError, match="predicted_old must have shape") as error:
        compare(wrong, draws=0)
    assert str(error.value) == (
        "predicted_old must have shape (2,) like targets, got (1,); "
        "predicted_new must be integers, got float64; groups must be 2, one an image, got 1; "
        "classes must differ, got a, a; targets must lie in [0, 2), got 0 to 2; "
        "draws must be at least 1, got 0"
    )
    with pytest.raises(ValueError, match="at least one class"):
        compare(outcome([], [], [], classes=[]))
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 2\), got -1 to 0"):
        compare(outcome([-1, 0], [0, 0], [0, 0]))


# --- judge -------------------------------------------------------------------------------------


def failed(decision: Decision) -> list[str]:
    names = [check["name"] for check in decision["checks"] if not check["passed"]]
    assert decision["passed"] == (not names)
    return names


def detail(decision: Decision, name: str) -> str:
    (found,) = [check["detail"] for check in decision["checks"] if check["name"] == name]
    return found


CHECKS = [
    "min_last_recall",
    "comparable",
    "max_class_loss",
    "classes_kept",
    "learnt_from_no_less",
]


@pytest.mark.parametrize(
    ("recall", "failing"),
    [
        (0.5, []),
        (0.49, ["min_last_recall"]),
        (None, ["min_last_recall"]),
        (float("nan"), ["min_last_recall"]),
        (0.1 + 0.4 - 1e-12, []),
    ],
)
def test_without_a_champion_the_first_version_is_judged_by_itself(
    recall: float | None, failing: list[str]
) -> None:
    decision = judge(CONFIG, recall, None, champion=None)
    assert [check["name"] for check in decision["checks"]] == CHECKS
    assert failed(decision) == failing
    assert {check["detail"] for check in decision["checks"][1:]} == {"there is no champion yet"}


def test_a_version_that_loses_nothing_passes() -> None:
    decision = judge(CONFIG, 0.9, lost(0, of=10), champion="3")
    assert failed(decision) == []
    assert detail(decision, "comparable") == (
        "with champion 3 on 2 classes that both know: mean class recall 100.00% -> 100.00% of 20 "
        "images (+0.00 points, 95 % interval +0.00 to +0.00, 0 no longer right)"
    )
    assert detail(decision, "max_class_loss") == (
        "no class loses more than 10.00 points; most: a 100.00% -> 100.00% of 10 images "
        "(+0.00 points, 95 % interval +0.00 to +0.00, 0 no longer right)"
    )
    assert detail(decision, "classes_kept") == "all classes of champion 3 are known"
    assert detail(decision, "learnt_from_no_less") == "learnt from no less than champion 3"


@pytest.mark.parametrize(
    ("images", "of", "limit", "failing"),
    [
        (1, 10, 0.1, []),
        (2, 10, 0.1, ["max_class_loss"]),
        (1, 9, 0.1, ["max_class_loss"]),
        (3, 30, 0.1, []),  # 1 - 27 / 30 exceeds 0.1 by rounding alone
        (4, 30, 0.1, ["max_class_loss"]),
        (1, 1, 1.0, []),
        (1, 400, 0.0, ["max_class_loss"]),
        (0, 400, 0.0, []),
    ],
)
def test_a_class_may_lose_as_much_as_the_limit(
    images: int, of: int, limit: float, failing: list[str]
) -> None:
    config = GateConfig(max_class_loss=limit)
    assert failed(judge(config, 0.9, lost(images, of=of), champion="3")) == failing


def test_what_a_class_lost_is_told() -> None:
    comparison = lost(3, of=10)
    decision = judge(CONFIG, 0.9, comparison, champion="3")
    low = comparison["classes"]["b"]["low"]
    assert low is not None
    assert detail(decision, "max_class_loss") == (
        "more than 10.00 points lost: b 100.00% -> 70.00% of 10 images (-30.00 points, 95 % "
        f"interval {100 * low:+.2f} to +0.00, 3 no longer right)"
    )


def test_what_other_classes_win_does_not_make_good_a_loss() -> None:
    right = [0] * 10 + [1] * 10
    won = compare(outcome(right, [1] * 10 + [1] * 10, [0] * 10 + [1] * 8 + [0] * 2))
    assert won["overall"]["difference"] == pytest.approx(0.4)
    assert failed(judge(CONFIG, 0.9, won, champion="3")) == ["max_class_loss"]


def test_the_worst_classes_are_named_first_and_not_without_end() -> None:
    names = [f"class {number}" for number in range(8)]
    targets = np.repeat(np.arange(8), 10)
    new = targets.copy()
    for number in range(8):  # class 7 loses 10 of 10, class 0 loses 3
        new[10 * number : 10 * number + 3 + number] = -1
    worse = compare(outcome(targets.tolist(), targets.tolist(), new.tolist(), None, names))
    told = detail(judge(CONFIG, 0.9, worse, champion="3"), "max_class_loss")
    assert told.startswith("more than 10.00 points lost: class 7 100.00% -> 0.00% of 10 images")
    assert told.endswith(", and 3 more")
    assert [name in told for name in names] == [False] * 3 + [True] * 5


def test_what_cannot_be_compared_does_not_pass() -> None:
    gone = judge(CONFIG, 0.9, None, champion="3", not_comparable="no image was kept")
    assert failed(gone) == ["comparable", "max_class_loss"]
    assert detail(gone, "comparable") == "cannot be compared with champion 3: no image was kept"
    silent = judge(CONFIG, 0.9, None, champion="3")
    assert failed(silent) == ["comparable", "max_class_loss"]
    assert detail(silent, "comparable") == "was not compared with champion 3"
    # A reason stands against any comparison: the caller knows more about the images.
    both = judge(CONFIG, 0.9, lost(0, of=9), champion="3", not_comparable="other images")
    assert failed(both) == ["comparable"]


def test_a_class_without_images_does_not_pass() -> None:
    partly = judge(CONFIG, 0.9, compare(outcome([0] * 5, [0] * 5, [0] * 5)), champion="3")
    assert failed(partly) == ["max_class_loss"]
    assert detail(partly, "max_class_loss").endswith("no images, so that a loss is not known: b")
    none = judge(CONFIG, 0.9, compare(outcome([], [], [])), champion="3")
    assert failed(none) == ["comparable", "max_class_loss"]
    assert "no image is of a class that both know" in detail(none, "comparable")


@pytest.mark.parametrize(
    ("gone", "meant", "failing", "told"),
    [
        (["x"], [], ["classes_kept"], "champion 3 knows, and this version does not: x"),
        (["x"], ["x"], [], "forgotten on purpose: x"),
        (
            ["x", "y"],
            ["y"],
            ["classes_kept"],
            "champion 3 knows, and this version does not: x; forgotten on purpose: y",
        ),
        ([], ["y"], [], "all classes of champion 3 are known"),
    ],
)
def test_classes_are_lost_only_on_purpose(
    gone: list[str], meant: list[str], failing: list[str], told: str
) -> None:
    decision = judge(CONFIG, 0.9, lost(0, of=9), champion="3", lost_classes=gone, forgotten=meant)
    assert failed(decision) == failing
    assert detail(decision, "classes_kept") == told


def test_learning_from_less_does_not_pass() -> None:
    less = "class naevus from 6 images, the champion from 210"
    decision = judge(CONFIG, 0.9, lost(0, of=9), champion="3", learnt_from_less=less)
    assert failed(decision) == ["learnt_from_no_less"]
    assert detail(decision, "learnt_from_no_less") == f"learnt from less than champion 3: {less}"


def test_the_comparison_cannot_be_switched_off() -> None:
    off = GateConfig(beat_champion=False)
    assert failed(judge(off, 0.9, lost(2, of=9), champion="3")) == ["max_class_loss"]


@pytest.mark.parametrize(
    "said",
    [
        {"comparison": lost(0, of=2)},
        {"lost_classes": ["x"]},
        {"learnt_from_less": "less"},
        {"not_comparable": "other images"},
    ],
)
def test_nothing_can_be_said_about_no_champion(said: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs the champion's version"):
        judge(CONFIG, 0.9, **({"comparison": None} | said), champion=None)


def stopped(images: int, limit: float) -> float:
    """How likely a class of so many images is stopped by chance: 5 % are lost and 5 % won."""
    share = np.ones(1)  # of -images ... +images lost more than won
    for _ in range(images):
        share = np.convolve(share, [0.05, 0.9, 0.05])
    return float(
        sum(
            chance
            for net, chance in zip(range(-images, images + 1), share, strict=True)
            if net > 0 and "max_class_loss" in failed(judged(net, images, limit))
        )
    )


def judged(net: int, images: int, limit: float) -> Decision:
    difference = -net / images
    change = dict.fromkeys(("low", "high"), difference) | {"images": images, "groups": images}
    change |= {"old": 1.0, "new": 1 + difference, "difference": difference, "negative_flips": net}
    comparison: Any = {"classes": {"a": change}, "overall": change, "not_measurable": []}
    return judge(GateConfig(max_class_loss=limit), 0.9, comparison, champion="3")


@pytest.mark.parametrize(
    ("limit", "percent"),
    [(0.1, [26, 6, 4, 1, 0]), (0.05, [26, 28, 13, 13, 4])],
)
def test_the_docstring_says_how_often_chance_stops_a_class(
    limit: float, percent: list[int]
) -> None:
    found = [round(100 * stopped(images, limit)) for images in (9, 10, 20, 50, 100)]
    assert found == percent
    assert GateConfig().max_class_loss == 0.1


def test_an_interval_within_the_limit_would_be_too_much_to_ask() -> None:
    """The docstring of `judge`: it stops 40 images that lost nothing more than every third time."""
    random, outside = np.random.default_rng(0), 0
    for seed in range(200):
        draw = random.random(40)
        change = one_class(draw >= 0.05, (draw < 0.05) | (draw >= 0.1), seed=seed)
        outside += (change["low"] or 0) < -0.1 - 1e-9
    assert 1 / 3 < outside / 200 < 0.5
