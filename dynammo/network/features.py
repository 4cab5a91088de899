"""Features of images under a frozen network, computed in batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Progress = Callable[[int, int], None]


@torch.inference_mode()
def extract_features(
    network: nn.Module, images: Tensor, batch_size: int = 64, progress: Progress | None = None
) -> Tensor:
    """Run images through a network in eval mode.

    Args:
        network: (B, 3, H, W) -> (B, D).
        images: (N, 3, H, W) uint8 RGB; none at all is fine.
        batch_size: images at a time.
        progress: called with (images done, N) after each batch.

    Returns:
        (N, D) float32 on the CPU.
    """
    network.eval()
    device = next(network.parameters()).device
    parts = []
    for start in range(0, max(len(images), 1), batch_size):  # no images: one empty batch
        batch = images[start : start + batch_size].to(device)
        parts.append(network(batch).float().cpu())
        if progress is not None:
            progress(min(start + batch_size, len(images)), len(images))
    return torch.cat(parts)


def views_of(images: Tensor, flip: bool, turns: bool = False) -> list[Tensor]:
    """Images (N, 3, H, W), H = W or, of strips, a multiple of W, in each augmentation view.

    As they are; mirrored, with `flip`; and with `turns` these again, turned by one, two and three
    quarters, of strips each slice. Both together are the eight symmetries of the square.
    """
    views = [images, images.flip(-1)] if flip else [images]
    if not turns:
        return views
    slices = [view.unflatten(-2, (-1, view.shape[-1])) for view in views]
    turned = [own.rot90(quarter, (-2, -1)) for quarter in range(1, 4) for own in slices]
    return views + [own.flatten(-3, -2) for own in turned]


def count_views(flip: bool, turns: bool = False) -> int:
    """How many `views_of` gives."""
    return (2 if flip else 1) * (4 if turns else 1)


def brightened(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Images (N, 3, H, W) uint8, each times a factor from U(1 - share, 1 + share), as float32.

    No value exceeds 255.
    """
    factors = 1 + share * (2 * torch.rand(len(images), 1, 1, 1, generator=generator) - 1)
    return (images * factors).clamp(max=255)


def augmented_views(network: nn.Module, images: Tensor, flip: bool, turns: bool = False) -> Tensor:
    """Features (V, N, D) of each of the V views that `views_of` gives."""
    views = views_of(images, flip, turns)
    return torch.stack([extract_features(network, view) for view in views])
