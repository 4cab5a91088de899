"""Whether there is an Evidently is asked first; its page is made where there is one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from dynammo.errors import DynammoError
from dynammo.evaluation.monitoring import Seen
from tasks.report_evidently import PYTHON, evidently_report, python_with_evidently

EVIDENTLY = os.environ.get(PYTHON)


def seen(images: int, distance: float) -> Seen:
    chance = np.random.default_rng(images)
    answers = chance.integers(0, 2, images)
    distances = chance.normal(distance, 1, images)
    return Seen(distances[:, None], distances, distances, None, answers, answers, [None] * images)


@pytest.mark.parametrize(
    ("python", "said"),
    [
        (None, "must name the Python of an Evidently: python -m venv ev"),
        ("nowhere", "cannot run nowhere: No such file or directory"),
        (sys.executable, "has no Evidently"),
    ],
)
def test_evidently_must_be_there(
    monkeypatch: pytest.MonkeyPatch, python: str | None, said: str
) -> None:
    monkeypatch.delenv(PYTHON, raising=False)
    if python is not None:
        monkeypatch.setenv(PYTHON, python)
    with pytest.raises(DynammoError, match=said):
        python_with_evidently()


def test_a_page_that_cannot_be_made_is_an_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Python that says it has Evidently, and whose Evidently does not work."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$2" = -c ] || { echo why; echo broken; } >&2\n[ "$2" = -c ]\n')
    python.chmod(0o755)
    monkeypatch.setenv(PYTHON, str(python))
    with pytest.raises(DynammoError, match=r"^Evidently failed: broken$"):
        evidently_report(python_with_evidently(), seen(20, 0), seen(10, 0), ["a", "b"])


@pytest.mark.skipif(not EVIDENTLY, reason=f"no Evidently: set {PYTHON} (docs/how-to/monitoring.md)")
def test_the_page_says_what_has_drifted() -> None:
    page = evidently_report(
        python_with_evidently(), seen(200, 0), seen(100, 3), ["amber", "birch"]
    ).decode()
    assert "Drift is detected for 50.0% of columns (1 out of 2)" in page
    assert "distance to the nearest class" in page
