"""State dicts of adapters, heads and networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what only hands tensors on does not load torch
    from torch import Tensor

State = dict[str, "Tensor"]
