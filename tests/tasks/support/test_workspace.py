from __future__ import annotations

import pytest
import torch

from dynammo.config import load_config
from tasks.support.workspace import choose_device, provenance, settings


def test_a_step_is_given_the_sections_it_depends_on() -> None:
    config = load_config(None, {"backbone.weights": "w.pth", "adapter.options": {"alpha": 0.1}})
    given = settings(config, "seed", "backbone", "adapter")
    assert given.keys() == {"seed", "backbone", "adapter"}
    # The weights are a checkpoint among a step's arguments; where they came from says nothing more.
    expected = {"name": "tf_efficientnet_lite0", "positions": None, "levels": 3}
    assert given["backbone"] == expected
    assert given["adapter"]["options"] == {"alpha": 0.1}


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_is_the_best_device_there_is(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto") == chosen
    assert choose_device("cpu") == "cpu"


def test_a_checkpoint_says_where_it_came_from() -> None:
    found = provenance({"seed": 1}, backbone="a" * 64, previous=None)
    assert found["config"] == {"seed": 1}
    assert found["parents"] == {"backbone": "a" * 64, "previous": None}
    assert {"python", "torch", "timm", "numpy"} <= found["versions"].keys()
