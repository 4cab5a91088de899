"""Scores as a table: what is written is read, and other programs' tables are not trusted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dynammo.errors import DataError
from dynammo.evaluation.metrics import Predictions, evaluate_stage
from dynammo.evaluation.scores import (
    measure_scores,
    read_scores,
    write_predictions,
    write_scores,
)

TASKS = [["cat", "dog"], ["stage, file"]]  # a name that must not be taken for a column
NAMES = [name for task in TASKS for name in task]
TESTS = {"a.png": "cat", "b.png": "dog", "c, d.png": "stage, file"}


def stages() -> list[Predictions]:
    scores = np.random.default_rng(0).dirichlet(np.ones(3), (2, 3)).astype(np.float32)
    return [
        Predictions(
            targets=np.arange(3),
            predicted=scores[task, :, : 2 + task].argmin(axis=1),  # not the highest score's
            scores=scores[task, :, : 2 + task],
            confidence=scores[task, :, 0],
            knownness=scores[task, :, 1] * 1000 - 3,
        )
        for task in range(2)
    ]


@pytest.mark.parametrize("name", ["scores.csv", "scores.csv.gz"])
def test_what_is_written_is_read_to_the_last_bit(tmp_path: Path, name: str) -> None:
    for folder in ("one", "other"):
        write_scores(tmp_path / folder / name, stages(), list(TESTS), NAMES)
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    for written, read in zip(
        stages(), read_scores(tmp_path / "one" / name, TESTS, TASKS), strict=True
    ):
        for part in ("targets", "predicted", "scores", "confidence", "knownness"):
            assert (getattr(read, part) == getattr(written, part)).all()


def test_the_least_table_has_a_stage_a_file_and_scores(tmp_path: Path) -> None:
    """Without images of classes to come, which other programs may not have kept."""
    file = tmp_path / "theirs.csv"
    file.write_text(
        'score:dog,stage,file,"score:stage, file",score:cat\n'
        ".3,1,a.png,,.7\n.4,1,b.png,,.6\n"
        '.3,2,a.png,.2,.5\n.9,2,b.png,.0,.1\n.1,2,"c, d.png",.8,.1\n'
    )
    read = read_scores(file, TESTS, TASKS)
    assert read[0].predicted.tolist() == [0, 0]
    assert read[0].confidence.tolist() == pytest.approx([0.7, 0.6])
    measured = measure_scores(read, TASKS)
    assert measured["stages"][0] == evaluate_stage(read[0], TASKS, 1)
    assert measured["stages"][0]["open_set_auroc"] is None
    assert measured["summary"]["average_accuracy"] == pytest.approx((0.5 + 1) / 2)
    write_predictions(tmp_path / "first.csv", read[0], TESTS, NAMES)
    assert (tmp_path / "first.csv").read_text().splitlines() == [
        "file,actual,predicted,confidence",
        "a.png,cat,cat,0.7000",
        "b.png,dog,cat,0.6000",
    ]


HEAD = 'stage,file,actual,predicted,confidence,score:cat,score:dog,"score:stage, file"\n'
ROWS = "1,a.png,,,,.7,.3,\n1,b.png,,,,.4,.6,\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stage,file,score:cat,score:dog\n", "no column 'score:stage, file'"),
        (HEAD + ROWS, "stage 2: a.png and 2 more test images are missing"),
        (HEAD + "1,a.png,,,,.7,.3,\n", "stage 1: b.png and 0 more"),
        (HEAD + ROWS + "3,a.png,,,,1,0,0\n", r"line 4: stage must lie in 1..2, got '3'"),
        (HEAD + "1,x.png,,,,1,0,\n", "line 2: 'x.png' is no test image"),
        (HEAD + ROWS + ROWS, "line 4: a.png has a second row at stage 1"),
        (HEAD + "1,a.png,dog,,,1,0,\n", "line 2: a.png is cat, not dog"),
        (HEAD + "1,a.png,,,,1,,\n", "line 2: score:dog must be a finite number, got ''"),
        (HEAD + "1,a.png,,,,1,nan,\n", "must be a finite number, got 'nan'"),
        (HEAD + "1,a.png,,,,1,0,0.5\n", "not learnt at this stage and has a score"),
        (HEAD + '1,a.png,,"stage, file",,1,0,\n', "is no class learnt at this stage"),
        (HEAD + "1,a.png,,,,7,3,\n", r"confidence must lie in \[0, 1\], got 7"),
        (HEAD + "1,a.png,,,,1,0,,9\n", "line 2: more values than columns"),
        (
            HEAD + "1,a.png,,,,1,0,\n1,b.png,,,,1,0,\n" + "2,a.png,,,,1,0,0\n2,b.png,,,,1,0,0\n",
            "stage 2: c, d.png and 0 more",
        ),
    ],
)
def test_a_wrong_table_is_refused_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "theirs.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=says):
        read_scores(file, TESTS, TASKS)


def test_of_classes_to_come_all_images_or_none(tmp_path: Path) -> None:
    tests = {**TESTS, "e.png": "stage, file"}
    rows = [f"1,{file},,,,.7,.3," for file in ("a.png", "b.png", "e.png")]
    rows += [f'2,"{file}",,,,.7,.3,0' for file in tests]
    file = tmp_path / "theirs.csv"
    file.write_text(HEAD + "\n".join(rows))
    with pytest.raises(DataError, match=r"all images or none, c, d\.png is missing"):
        read_scores(file, tests, TASKS)


@pytest.mark.parametrize("name", ["missing.csv", "broken.csv.gz", "bytes.csv"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    if name != "missing.csv":
        (tmp_path / name).write_bytes(b"\xff\x1f\x8b not text")
    with pytest.raises(DataError, match=f"cannot read .*{name}"):
        read_scores(tmp_path / name, TESTS, TASKS)
