"""Where torch computes."""

from __future__ import annotations

import torch


def choose_device(name: str) -> str:
    """`auto` becomes the best device this machine has."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
