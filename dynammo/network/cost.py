"""What a model costs: multiply-accumulates and parameters."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dynammo.data.formats.pictures import Form, form_of


@torch.inference_mode()
def count_macs(network: nn.Module, form: Form | int) -> int:
    """Multiply-accumulates of one forward pass on one image, counting what really runs.

    Half the FLOPs that torch's `FlopCounterMode` counts: convolutions and matrix products;
    element-wise work and BatchNorm are not counted. ResNet-18 at 224 pixels: 1.814 * 10^9.

    Args:
        network: (1, 3, height, size) -> anything.
        form: of the image, or the side of a picture in pixels.
    """
    form = form_of(form)
    counter = FlopCounterMode(display=False)
    # Attention that runs as one fused operation would not be counted.
    with counter, sdpa_kernel(SDPBackend.MATH):
        network(torch.zeros(1, 3, form.height, form.size))
    return int(counter.get_total_flops()) // 2


def count_parameters(network: nn.Module) -> int:
    """Parameters, trainable or not; buffers are not counted."""
    return sum(parameter.numel() for parameter in network.parameters())
