"""The same map, in every layout."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dynammo.network.layouts import (
    ChannelsFirst,
    ChannelsLast,
    TokenList,
    TokenMap,
    layout_of,
)

PLAIN: Any = SimpleNamespace()
LAST: Any = SimpleNamespace(output_fmt="NHWC")
TOKENS: Any = SimpleNamespace(num_prefix_tokens=2)


def test_the_residual_of_a_map_is_the_same_in_every_layout() -> None:
    x = torch.randn(2, 4, 3, 3)
    adapter = nn.Conv2d(4, 4, 3, padding=1)
    expected = adapter(x)
    first = ChannelsFirst(4, 3).residual(adapter, x)
    last = ChannelsLast(4, 3).residual(adapter, x.permute(0, 2, 3, 1))
    tokens = x.flatten(2).transpose(1, 2)
    with_prefix = torch.cat([torch.randn(2, 2, 4), tokens], dim=1)
    beside = TokenMap(4, 3, 2).residual(adapter, with_prefix)
    assert torch.equal(first, expected)
    torch.testing.assert_close(last.permute(0, 3, 1, 2), expected)
    assert not beside[:, :2].any()
    torch.testing.assert_close(beside[:, 2:].transpose(1, 2).unflatten(2, (3, 3)), expected)


def test_tokens_one_at_a_time() -> None:
    x = torch.randn(2, 7, 4)
    adapter = nn.Conv2d(4, 4, 1)
    expected = x @ adapter.weight[:, :, 0, 0].T + adapter.bias
    torch.testing.assert_close(TokenList(4).residual(adapter, x), expected)


@pytest.mark.parametrize(
    ("backbone", "shape", "neighbours", "expected"),
    [
        (PLAIN, (1, 8, 5, 6), True, ChannelsFirst(8, 5)),
        (LAST, (1, 5, 6, 8), True, ChannelsLast(8, 5)),
        (TOKENS, (1, 11, 8), False, TokenList(8)),
        (TOKENS, (1, 11, 8), True, TokenMap(8, 3, 2)),
        (TOKENS, (1, 9, 8), True, TokenMap(8, 3, 0)),  # they join later
    ],
)
def test_the_layout_follows_from_the_shape(
    backbone: Any, shape: tuple[int, ...], neighbours: bool, expected: Any
) -> None:
    found = layout_of(backbone, torch.Size(shape), neighbours)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 8), r"takes \(1, 8\), neither a map nor tokens"),
        ((1, 13, 8), "takes 13 tokens, which are no square map; choose another adapter"),
    ],
)
def test_other_tensors_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout_of(TOKENS, torch.Size(shape), neighbours=True)
