"""State dicts of adapters, heads and networks."""

from __future__ import annotations

from torch import Tensor

State = dict[str, Tensor]
