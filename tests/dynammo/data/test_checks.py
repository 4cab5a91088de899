from __future__ import annotations

import logging
from pathlib import Path

import pytest

from dynammo.data.checks import RESERVED, check_image_set, problems_of_names
from dynammo.data.samples import ImageSet, Sample
from dynammo.errors import DataError


def image_set(*rows: tuple[str, str, str | None, str]) -> ImageSet:
    """From (split, label, group, content): files are named after their position."""
    samples = (
        Sample(f"{split}/{label}/{number}.png", split, label, group, content)
        for number, (split, label, group, content) in enumerate(rows)
    )
    return ImageSet(Path("/data"), tuple(samples))


SOUND = (("train", "a", "p1", "1"), ("train", "b", "p1", "2"), ("test", "a", None, "3"))


def test_a_sound_image_set_passes() -> None:
    check_image_set(image_set(*SOUND, ("test", "b", "p2", "4"), ("train", "a", None, "1")))


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(DataError) as caught:
        check_image_set(
            image_set(
                *SOUND,
                ("test", "c", "p1", "5"),
                ("test", "c", "p1", "2"),
                ("train", "a", None, "2"),
                ("train", "a", None, "6"),
                ("train", "b", None, "6"),
            )
        )
    assert caught.value.problems == [
        "class 'b' has 2 train and 0 test images; expected some of each",
        "class 'c' has 0 train and 2 test images; expected some of each",
        "group 'p1' is in train and in test: train/a/0.png and test/c/3.png",
        "the same picture is in train and in test: train/a/5.png and test/c/4.png",
        "the same picture is under two classes: train/a/5.png ('a') and train/b/1.png ('b')",
        "the same picture is under two classes: train/a/6.png ('a') and train/b/7.png ('b')",
    ]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["a", "B", "melanocytic nævus", "0", "x.y/z (2)"], None),
        (["a", "", "b"], "'' is empty"),
        (["a ", "b"], "'a ' has characters that do not show"),
        (["\udcff"], "do not show"),  # a folder whose name is not UTF-8
        (["-1"], "a formula in a spreadsheet"),
        (["Å", "\u212b"], "'Å' and '\u212b' cannot be told apart"),
    ],
)
def test_names_of_classes(names: list[str], problem: str | None) -> None:
    found = problems_of_names(names)
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]


def test_a_class_name_that_is_no_answer_is_a_problem_of_the_data() -> None:
    with pytest.raises(DataError, match="formula"):
        check_image_set(image_set(("train", "=1", None, "1"), ("test", "=1", None, "2")))


@pytest.mark.parametrize("name", RESERVED)
def test_a_class_called_like_a_column_of_answers_is_refused(name: str) -> None:
    with pytest.raises(DataError) as caught:
        check_image_set(image_set(("train", name, None, "1"), ("test", name, None, "2")))
    (problem,) = caught.value.problems
    assert problem.startswith(f"class name {name!r} is that of a column of answers")


def test_no_images() -> None:
    with pytest.raises(DataError, match="/data: no images"):
        check_image_set(image_set())


def test_repeated_pictures_of_published_sets_are_only_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    samples = (
        Sample("train/a/1", "train", "a", "g", "x"),
        Sample("test/a/1", "test", "a", "g", "x"),
        Sample("train/b/1", "train", "b", None, "y"),
        Sample("test/b/1", "test", "b", None, "z"),
    )
    with pytest.raises(DataError) as caught, caplog.at_level(logging.WARNING):
        check_image_set(ImageSet(Path("/data"), samples), "warn")
    # A patient in both splits is refused all the same.
    assert caught.value.problems == ["group 'g' is in train and in test: train/a/1 and test/a/1"]
    (record,) = caplog.records
    assert record.getMessage().startswith("1 repeated pictures are kept, as data.repeats says")
    assert record.getMessage().endswith(
        "the same picture is in train and in test: train/a/1 and test/a/1"
    )
