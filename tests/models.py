"""Changed model folders, with or without their hashes made anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save

from dynammo.checkpoint import sealed
from dynammo.state import State


def reseal(folder: Path, change: Mapping[str, object], tensors: State | None = None) -> None:
    """Change `model.json`, and the weights, as someone does who makes the hashes anew.

    Args:
        folder: of a model.
        change: keys of `model.json`; None takes one out.
        tensors: to replace those of the model.
    """
    weights = save(load_file(folder / "model.safetensors") if tensors is None else tensors)
    (folder / "model.safetensors").write_bytes(weights)
    manifest = json.loads((folder / "model.json").read_text())
    del manifest["document_sha256"]
    manifest |= {"weights_sha256": hashlib.sha256(weights).hexdigest(), **change}
    manifest = {
        key: value for key, value in manifest.items() if value is not None or key == "adapter"
    }
    (folder / "model.json").write_bytes(sealed(manifest))
