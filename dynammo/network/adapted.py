"""A module of the backbone with its adapter, or with many side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynammo.network.layouts import Layout


class AdaptedStage(nn.Module):
    """A module with an adapter at the place that the adapter names:

    before: stage(x + A(x)),  beside: stage(x) + A(x),  after: y + A(y) with y = stage(x).

    Args:
        adapter: gives the residual; its attribute `place` is one of these, `before` where it has
            none.
        stage: the module that is adapted.
        layout: shows x to the adapter as a map (B, C, H, W); none: it takes x as it is.
        copies: of its input that it makes and goes on with, for `ParallelAdapters`.
    """

    def __init__(
        self,
        adapter: nn.Module,
        stage: nn.Module,
        layout: Layout | None = None,
        copies: int = 1,
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.stage = stage
        self.layout = layout
        self.copies = copies
        self.place = str(getattr(adapter, "place", "before"))

    def forward(self, x: Tensor, *others: Any, **options: Any) -> Tensor:
        """X as the stage takes it, and what else it takes -> the stage's output."""
        if self.copies > 1:
            x = torch.cat([x] * self.copies)
        if self.place == "before":
            output: Tensor = self.stage(x + self._residual(x), *others, **options)
            return output
        output = self.stage(x, *others, **options)
        return output + self._residual(x if self.place == "beside" else output)

    def _residual(self, x: Tensor) -> Tensor:
        if self.layout is not None:
            return self.layout.residual(self.adapter, x)
        residual: Tensor = self.adapter(x)
        return residual


class ParallelAdapters(nn.Module):
    """n adapters side by side, for the unmerged model: an adapter itself.

    The batch carries n copies of every image, one an adapter, laid out as (n * B, ...).
    """

    def __init__(self, adapters: Sequence[nn.Module]) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(adapters)
        self.place = getattr(adapters[0], "place", "before")

    def forward(self, x: Tensor) -> Tensor:
        """(n * B, ...) -> A_k of the k-th part for every k, (n * B, ...)."""
        parts = zip(x.chunk(len(self.adapters)), self.adapters, strict=True)
        return torch.cat([adapter(part) for part, adapter in parts])
