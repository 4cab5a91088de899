"""Adding up again what batches left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dynammo.heads.drift import Drift
from dynammo.heads.statistics import Pooling, measure_classes, pack
from tasks.forget_batches import add_up
from tasks.support.stage import Part
from tasks.support.workspace import Context


@pytest.mark.parametrize("pooling", ["samples", "classes"])
def test_batches_that_are_added_up_are_all_their_samples(tmp_path: Path, pooling: Pooling) -> None:
    """Of which those that came before the network changed are where it put them."""
    store = (context := Context(store=str(tmp_path))).checkpoints
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 1, 30, 4, generator=generator)
    labels = torch.arange(30) % 3  # in the second batch a is known and c new
    slope, shift = 0.1 * torch.randn(4, 4, generator=generator), torch.ones(4)
    drift = Drift(slope.double(), torch.zeros(4).double(), shift.double())

    def batch(number: int, features: torch.Tensor, classes: list[str], moved: bool) -> Part:
        own = labels < len(classes)
        known = measure_classes(features[:, own], labels[own], len(classes), "classes")
        return {
            "batch": number,
            "classes": classes,
            "statistics": store.save("batch-statistics", pack(known), {}),
            "drift": store.save("drift", drift.state(), {}) if moved else None,
        }

    parts = [batch(1, first, ["a", "b"], False), batch(2, second, ["a", "c"], True)]
    names = ["a", "b", "c"]
    found = add_up(parts, names, pooling, context)
    kept = labels < 2
    features = torch.cat([drift.features(first[0, kept]), second[0, kept].double()])
    owner = torch.cat([labels[kept], 2 * labels[kept]])
    expected = measure_classes(features.unsqueeze(0), owner, 3, pooling)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
