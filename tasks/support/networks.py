"""Rebuild a network from the checkpoints that a step is given."""

from __future__ import annotations

import torch

from dynammo.checkpoint import Ref
from dynammo.config import Config
from dynammo.network.network import Network, build_network
from tasks.support.workspace import CHECKPOINTS


def load_network(config: Config, backbone: Ref, adapter: Ref | None, device: str) -> Network:
    """The backbone with the adapter of a checkpoint; bare where there is none.

    Args:
        config: sections backbone, adapter and image.
        backbone: checkpoint of the frozen network.
        adapter: checkpoint of a task's adapter or of a merged one.
        device: a torch device.
    """
    weights = CHECKPOINTS.load(backbone)
    kind = config.adapter if adapter is not None else None
    network = build_network(config.backbone, weights, config.image.size, kind)
    if adapter is not None:
        network.load_adapter_state(CHECKPOINTS.load(adapter))
    return network.to(torch.device(device))
