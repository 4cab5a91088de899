"""How far adapters are trusted, by images held out from their training (`merge.trust`)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dynammo.merging.trust import Gain
from flows.forget import forget
from flows.learn import learn
from tasks.support.version import find_learner
from tests.flows.project import OVERRIDES, TASKS, Project

pytestmark = pytest.mark.usefixtures("prefect_server")


def trusting(scale: float, patch: pytest.MonkeyPatch) -> None:
    """Let held-out images say so."""
    patch.setattr("tasks.trust_adapter.trusted", lambda answers: Gain(scale, 0.0, -1.0, 1.0))


def test_adapters_that_are_not_trusted_leave_the_frozen_backbone(
    new: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusting(0.0, monkeypatch)
    with new.entered():
        lines = new.log(
            merge__trust="held_out",
            methods=["merged", "frozen"],
            tracking__register_model=False,
        )
    assert any("14 images of amber, birch" in line for line in lines)  # of 16
    said = [line for line in lines if "adapters are trusted at 0" in line]
    assert all(f"on {2 * task} held-out" in line for task, line in enumerate(said, start=1))
    assert len(said) == 3
    results = new.read("results.json")
    stages = [results["variants"][name]["stages"] for name in ("merged", "frozen")]
    for ours, theirs in zip(*stages, strict=True):
        assert ours["confusion"] == theirs["confusion"]
    trust = results["trust"]
    assert (trust["scale"], trust["images"]) == (0, 6)
    assert trust["low"] <= trust["difference"] <= trust["high"]
    assert "On 6 training images held out" in (new.results / "report.html").read_text()


def test_a_learner_that_forgets_trusts_as_before(
    here: Path, arrive: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trusting(0.5, monkeypatch)
    settings = {**OVERRIDES, "merge.trust": "held_out"}
    for number, classes in enumerate(TASKS[:2], start=1):
        batch = arrive(f"batch{number}", classes)
        learn("halves", str(batch), None, settings if number == 1 else None)
        shutil.rmtree(batch)
    forget("halves", [2])
    folder = find_learner("halves")
    adapted = folder.current()["stage"]["adapted"]
    whole, only = (
        folder.store.load(ref) for ref in (adapted["trust"]["whole"], adapted["adapters"][0])
    )
    merged = folder.store.load(adapted["merged"])
    for name, value in merged.items():
        torch.testing.assert_close(value, whole[name] / 2)
        torch.testing.assert_close(whole[name], only[name])
