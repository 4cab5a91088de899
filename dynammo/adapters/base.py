"""What an entry of `ADAPTERS` is."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn


class AdapterFactory(Protocol):
    """Makes an adapter: usually its class.

    It may have an attribute `min_size`, the smallest height and width that the adapter takes; 1
    where it has none.
    """

    def __call__(self, channels: int, **options: Any) -> nn.Module:
        """An adapter, (B, channels, H, W) -> the residual of the same shape.

        Args:
            channels: of the feature map it is put on.
            options: `adapter.options`.
        """
        ...
