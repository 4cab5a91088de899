"""The example of the library runs as its first lines say, and learns both tasks."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "two_tasks.py"


def test_two_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # it writes the digits
    runpy.run_path(str(EXAMPLE))
    found = re.fullmatch(
        r"([\d.]+)% of 214 test images of 6 digits are right\n", capsys.readouterr().out
    )
    assert found and float(found[1]) > 90
