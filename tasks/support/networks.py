"""Rebuild a network from the checkpoints that a step is given."""

from __future__ import annotations

import torch

from dynammo.checkpoint import Ref
from dynammo.config import AdapterConfig, ArchitectureConfig, ImageConfig
from dynammo.network.network import Network, build_network
from tasks.support.workspace import Context


def load_network(
    architecture: ArchitectureConfig,
    image: ImageConfig,
    kind: AdapterConfig,
    backbone: Ref,
    adapter: Ref | None,
    context: Context,
) -> Network:
    """The backbone with the adapter of a checkpoint; bare where there is none.

    Args:
        architecture: of the backbone.
        image: size of the images.
        kind: of adapter.
        backbone: checkpoint of the frozen network.
        adapter: checkpoint of a task's adapter or of a merged one.
        context: places.
    """
    store = context.checkpoints
    weights = store.load(backbone)
    network = build_network(
        architecture, weights, image.form, kind if adapter is not None else None
    )
    if adapter is not None:
        network.load_adapter_state(store.load(adapter))
    return network.to(torch.device(context.device))
