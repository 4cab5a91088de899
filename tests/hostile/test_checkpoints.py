"""Checkpoints whose metadata was deleted or damaged: the step that made them runs again."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from dynammo.config import MemoryConfig
from tasks.support.caching import step
from tasks.support.workspace import CHECKPOINTS, Context, provenance

runs: list[int] = []


@step("keep")
def keep(memory: MemoryConfig, context: Context) -> dict[str, Any]:
    runs.append(memory.size or 0)
    saved = {"x": torch.tensor(memory.size)}
    return {"kept": context.checkpoints.save("kept", saved, provenance(memory))}


@pytest.mark.usefixtures("prefect_server")
def test_metadata_that_is_damaged_or_gone_is_made_anew() -> None:
    first = keep(MemoryConfig(size=7), Context(label="1/1"))
    path = CHECKPOINTS.path(first["kept"]).with_suffix(".json")
    content = path.read_bytes()
    places = random.Random(0).sample(range(len(content)), 12)
    flipped = [content[:i] + bytes([content[i] ^ 4]) + content[i + 1 :] for i in places]
    for count, damaged in enumerate([None, b"", *flipped], start=1):
        if damaged is None:
            path.unlink()
        else:
            path.chmod(0o644)
            path.write_bytes(damaged)
        assert keep(MemoryConfig(size=7), Context(label="1/1")) == first
        assert len(runs) == count + 1
        assert path.read_bytes() == content
