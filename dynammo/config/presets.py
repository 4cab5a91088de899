"""Presets: values of settings that are not given (docs/explanation/presets.md)."""

from __future__ import annotations

from typing import Any

_BEST: dict[str, dict[str, Any]] = {
    "backbone": {"levels": 3},
    "adapter": {"name": "linear"},
    "train": {"learning_rate": 0.003},
    # Levels are normalised by themselves: their head needs no roots, and less shrinkage.
    "head": {"rule": "discriminant", "power": 1.0, "shrinkage": 0.35, "init": "task_heads"},
}
PRESETS: dict[str, dict[str, Any]] = {
    "best": _BEST,
    "no_images": {**_BEST, "adapter": {"name": "linear", "tasks": 1}, "memory": {"per_class": 0}},
    "paper": {"adapter": {"name": "conv"}, "head": {"rule": "fine_tune", "init": "new"}},
}
