"""What somebody sees of long work without a terminal."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from prefect import flow

from tasks.support import progress as module
from tasks.support.progress import progress_bar


def test_a_run_logs_how_much_time_is_left(
    prefect_server: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every ten seconds: of six images at these times after the third and the fifth."""
    clock = iter([0.0, 4.0, 8.0, 12.0, 16.0, 25.0, 32.0])
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    @flow
    def work() -> None:
        with progress_bar("decode images", "image") as progress:
            for done in range(1, 7):
                progress(done, 6)

    with caplog.at_level(logging.INFO):
        work()
    said = [it.getMessage() for it in caplog.records if "decode" in it.getMessage()]
    assert said == [
        "decode images: image 3 of 6, about 00:12 left",
        "decode images: image 5 of 6, about 00:05 left",
    ]


def test_outside_a_run_nothing_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    with progress_bar("classify", "image") as progress:
        progress(1, 2)
    assert not caplog.records
