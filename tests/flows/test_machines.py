"""A run that trains its adapters together with `dynammo join`, as on another machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from safetensors.torch import load_file

from dynammo.processes import INTERFACE, LOOPBACK
from tests.flows.project import Project
from tests.flows.test_resume import ROOT


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    monkeypatch.setenv(INTERFACE, LOOPBACK)
    monkeypatch.setattr("tasks.machines._PATIENCE", 120)
    process = subprocess.Popen(
        [sys.executable, "-c", "from flows.cli import app; app()", "join"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(600)
def test_two_machines_learn_what_one_does(finished: Project, helper: subprocess.Popen[str]) -> None:
    states = finished.run(
        output="together", methods=["merged"], train__machines=2, tracking__register_model=False
    )
    assert states["train adapter 1/3"] == "Completed"
    helper.send_signal(signal.SIGTERM)
    _, said = helper.communicate(timeout=60)
    assert helper.returncode == 128 + signal.SIGTERM
    assert said.count("machine 2 of 2\n") == 3  # tasks
    assert said.count("done; waiting for the next invitation\n") == 3
    # Up to rounding: sums are taken in another order.
    alone, together = (
        load_file(finished.folder / folder / "model" / "model.safetensors")
        for folder in (finished.results, "together")
    )
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        difference = (together[name] - value).abs().max()
        assert difference <= 1e-3 * value.abs().max(), name  # 1.2e-5 was measured
    metrics = json.loads((finished.folder / "together" / "metrics.json").read_text())
    for name, value in finished.read("metrics.json")["merged"].items():
        assert metrics["merged"][name] == pytest.approx(value, abs=0.05), name
