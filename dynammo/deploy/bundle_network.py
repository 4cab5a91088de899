"""What a MONAI bundle runs, without DynaMMo: how a picture is read, and the exported network.

`dynammo.deploy.bundle` copies this file into the bundle, as scripts/network.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn


def read_picture(file: str | Path, size: int) -> Tensor:
    """A photograph as (3, size, size) float32 in 0..255: upright, RGB, the aspect squashed."""
    photo = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    pixels = np.array(photo.resize((size, size), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).permute(2, 0, 1).float()


class Exported(nn.Module):
    """A torch.export program as a module that can be told to be in eval mode, as it always is.

    Args:
        file: model.pt2. It is not safe to load one of unknown origin.
    """

    def __init__(self, file: str | Path) -> None:
        super().__init__()
        self.program = torch.export.load(file).module()

    def train(self, mode: bool = True) -> Self:
        """Nothing: what was exported has one mode."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) RGB in 0..255, rounded -> class probabilities (B, C)."""
        _, probabilities = self.program(images.round().to(torch.uint8))
        result: Tensor = probabilities
        return result
