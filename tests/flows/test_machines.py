"""A run that trains its adapters together with `dynammo join`, as on another machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import load_file

from dynammo.processes import INTERFACE
from dynammo.state import State
from tasks.workspace import CHECKPOINTS
from tests.flows.project import Project
from tests.flows.test_resume import ROOT


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    monkeypatch.setenv(INTERFACE, "lo0" if sys.platform == "darwin" else "lo")
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


def first_adapters() -> tuple[State, State]:
    """The first task's that one machine trained, and from the same things two."""
    made = []
    for file in CHECKPOINTS.folder.glob("adapter-*.safetensors"):
        meta = CHECKPOINTS.meta({"path": file.name, "sha256": ""})
        if meta["parents"]["task"] == 1:
            machines = meta["config"]["train"].pop("machines")
            made.append((machines, (meta["config"], meta["parents"]), load_file(file)))
    ((source, together),) = ((source, state) for machines, source, state in made if machines == 2)
    (alone,) = (state for machines, other, state in made if machines == 1 and other == source)
    return alone, together


@pytest.mark.timeout(600)
def test_two_machines_learn_what_one_does(finished: Project, helper: subprocess.Popen[str]) -> None:
    states = finished.run(
        output="together", methods=["merged"], train__machines=2, tracking__register_model=False
    )
    assert states["train adapter 1/3"] == "Completed"
    helper.send_signal(signal.SIGTERM)
    _, said = helper.communicate(timeout=60)
    assert helper.returncode == 128 + signal.SIGTERM
    assert said.count("machine 2 of 2\ndone; waiting for the next invitation\n") == 3  # tasks
    # The first starts from the same weights, images and order: it differs by rounding. What follows
    # from it is as close, but for exemplars that are chosen by features.
    alone, together = first_adapters()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, atol=1e-6, rtol=1e-4)
    metrics = json.loads((finished.folder / "together" / "metrics.json").read_text())
    for name, value in finished.read("metrics.json")["merged"].items():
        assert metrics["merged"][name] == pytest.approx(value, abs=0.05), name
