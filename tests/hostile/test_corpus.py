"""Bad inputs end as clear lines, or as documented. All of them: python -m tests.hostile.corpus."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.hostile.corpus import judging
from tests.hostile.corpus.all import all_cases, quick_cases
from tests.hostile.corpus.judging import Case, Fault, judge


@pytest.mark.parametrize("case", list(quick_cases()), ids=lambda case: f"{case.group}: {case.name}")
def test_a_bad_input(case: Case, tmp_path: Path) -> None:
    judge(case, tmp_path)


def test_no_case_is_there_twice() -> None:
    names = [(case.group, case.name) for case in all_cases()]
    assert len(names) == len(set(names)) > 700


def silent(_: Path) -> None:
    pass


def crashes(_: Path) -> None:
    raise KeyError("x")


def hangs(_: Path) -> None:
    while True:
        time.sleep(0.01)


def grows(_: Path) -> None:
    bytearray(3 * judging.MEGABYTES * 2**20)


def missing(_: Path) -> None:
    Path("/no/where").read_bytes()


@pytest.mark.parametrize(
    ("attempt", "says", "fault"),
    [
        (silent, "x", "accepted without a word"),
        (crashes, "x", "KeyError"),
        (hangs, "x", "took more than 1 s"),
        (grows, "x", "MemoryError"),
        (missing, "what it is not", "do not say"),
        (missing, None, "refused, but to be handled"),
    ],
)
def test_what_is_a_fault(
    attempt: object, says: str | None, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "SECONDS", 1)
    with pytest.raises(Fault, match=fault):
        judge(Case("g", "n", attempt, says), tmp_path)  # type: ignore[arg-type]
