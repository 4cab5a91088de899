"""BatchNorm of the frozen backbone, moved towards the images that the classifier is for."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from dynammo.errors import ConfigError, DynammoError
from dynammo.network.network import Network
from dynammo.state import State

_BATCH = 64


def _norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Those with running statistics, in the order in which they are registered."""
    kinds = (m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    return [norm for norm in kinds if norm.track_running_stats]


def check_batch_norms(network: nn.Module) -> None:
    """Refuse a backbone without any.

    Raises:
        ConfigError: there is nothing to be moved.
    """
    if not _norms(network):
        raise ConfigError(["backbone.renormalise: this backbone has no BatchNorm; set it to 0"])


@torch.no_grad()
def renormalise(network: Network, images: Tensor, share: float, seed: int) -> State:
    """Move each BatchNorm's mean and variance by a share towards those of other images.

        m' = (1 - s) m + s m_images,    v' = (1 - s) v + s v_images,

    where m_images and v_images are the means over batches of what the layer receives when every
    BatchNorm before it normalises with the batch's own mean and variance.

    Args:
        network: bare; its backbone is changed in place.
        images: (N, 3, H, W) uint8.
        share: s in 0..1; 1 replaces the statistics, 0 leaves them.
        seed: of which images come together in a batch.

    Returns:
        The backbone's state dict, on the CPU.

    Raises:
        ConfigError: the backbone has no BatchNorm.
        DynammoError: fewer than two images, which have no variance.

    Source: adaptive batch normalisation (Li 2016, arXiv 1603.04779), which replaces them; in part,
    because a task has few images and not all classes: Schneider 2020 (arXiv 2006.16971).
    """
    check_batch_norms(network.backbone)
    if len(images) < 2:
        raise DynammoError(f"backbone.renormalise needs at least 2 images, got {len(images)}")
    norms = _norms(network.backbone)
    before = [(norm.momentum, deepcopy(norm.state_dict())) for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.training = True
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    device = next(network.parameters()).device
    for batch in order.tensor_split(max(1, len(images) // _BATCH)):
        network(images[batch].to(device))
    for norm, (momentum, old) in zip(norms, before, strict=True):
        norm.momentum, norm.training = momentum, False
        kept = 1 - share if norm.num_batches_tracked else 1.0  # some may not be on the image's path
        for name in ("running_mean", "running_var"):
            norm.get_buffer(name).lerp_(old[name], kept)
    return {name: value.cpu().clone() for name, value in network.backbone.state_dict().items()}
