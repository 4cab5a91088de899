"""Adapters: small trainable modules inserted into a frozen backbone.

Between stages, an adapter is an `nn.Module` built as `Adapter(channels, **options)` that maps
(B, C, H, W) to a residual of the same shape; the network adds it: x <- x + A(x). Its class
attribute `min_size`, 1 where it has none, is the smallest H and W that it takes. Two methods are
optional: `as_linear` (W and b, or None, of A(x) = W x + b) lets it be folded into the backbone,
`fused` gives a cheaper module that computes the same in eval mode, for deployment
(`dynammo.network.folding`). An adapter for layers inside the stages is a
`dynammo.adapters.base.LayerAdapter`. To add one, write a file here and a line below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynammo.registry import Registry

if TYPE_CHECKING:  # importing the table imports no part
    from dynammo.adapters.base import AdapterFactory

ADAPTERS: Registry[AdapterFactory] = Registry(
    "adapter",
    {
        "attention": "dynammo.adapters.attention:AttentionAdapter",
        "bottleneck": "dynammo.adapters.bottleneck:BottleneckAdapter",
        "conv": "dynammo.adapters.conv:ConvAdapter",
        "linear": "dynammo.adapters.linear:LinearAdapter",
        "lora": "dynammo.adapters.lora:LoRAAdapter",
        "ssf": "dynammo.adapters.ssf:ScaleShiftAdapter",
    },
    group="dynammo.adapters",
)
