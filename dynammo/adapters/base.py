"""What an entry of `ADAPTERS` is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from dynammo.network.tracing import PLAIN_CONVOLUTIONS

Place = Literal["before", "beside", "after"]


class AdapterFactory(Protocol):
    """Makes an adapter: usually its class, and not one of `LayerAdapter`.

    It may have an attribute `min_size`, the smallest height and width that the adapter takes; 1
    where it has none, and then it must see one place at a time, as a 1x1 convolution does: tokens
    of a transformer come to it as a map (B, C, N, 1). An adapter that sees other places, too, has 2
    or more, and is given the patches' tokens as the square that they are.
    """

    def __call__(self, channels: int, **options: Any) -> nn.Module:
        """An adapter, (B, channels, H, W) -> the residual of the same shape.

        Args:
            channels: of the feature map it is put on.
            options: `adapter.options`.
        """
        ...


class LayerAdapter(nn.Module):
    """An adapter for layers inside the stages, made as `Adapter(layer, **adapter.options)`.

    It gives a residual of the shape of the layer's output, laid out as the layer has it. A method
    `fold_into(layer)` is optional: it changes the layer's own weights so that the layer alone
    computes what it did with the adapter.

    Attributes:
        place: beside: layer(x) + A(x); after: y + A(y), y = layer(x); before: layer(x + A(x)).
    """

    place: Place

    @staticmethod
    @abstractmethod
    def choose(modules: Mapping[str, nn.Module]) -> list[str]:
        """Which of some modules get such an adapter; none may be inside another."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """What `place` says -> the residual."""


def is_plain(layer: nn.Module) -> bool:
    """A convolution that uses its weights as they are; other subclasses may compute them."""
    return type(layer).__name__ in PLAIN_CONVOLUTIONS
