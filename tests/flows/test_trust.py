"""How far adapters are trusted, by images held out from their training (`merge.trust`)."""

from __future__ import annotations

import json
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


def trusting(scale: float, patch: pytest.MonkeyPatch) -> None:
    """Let held-out images say so."""
    patch.setattr("tasks.trust_adapter.trusted", lambda answers: Gain(scale, 0.0, -1.0, 1.0))


def test_held_out_images_are_asked_batch_after_batch(finished: Project) -> None:
    lines = finished.log(
        merge__trust="held_out",
        output="trust",
        methods=["merged"],
        tracking__register_model=False,
    )
    said = [line for line in lines if "adapters are trusted at" in line]
    assert ["on 2 held" in said[0], "on 4 held" in said[1], "on 6 held" in said[2]] == [True] * 3
    assert any("14 images of amber, birch" in line for line in lines)  # of 16
    trust = json.loads((finished.folder / "trust" / "results.json").read_text())["trust"]
    assert trust["images"] == 6
    assert trust["low"] <= trust["difference"] <= trust["high"]
    assert (
        "On 6 training images held out" in (finished.folder / "trust" / "report.html").read_text()
    )


def test_adapters_that_are_not_trusted_leave_the_frozen_backbone(
    finished: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusting(0.0, monkeypatch)
    finished.run(
        seed=4,
        merge__trust="held_out",
        output="trust",
        methods=["merged", "frozen"],
        tracking__register_model=False,
    )
    variants = json.loads((finished.folder / "trust" / "results.json").read_text())["variants"]
    for ours, theirs in zip(
        variants["merged"]["stages"], variants["frozen"]["stages"], strict=True
    ):
        assert ours["confusion"] == theirs["confusion"]


@pytest.mark.usefixtures("prefect_server")
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
