"""Names for images and groups that mean something to whoever holds a key, and to nobody else."""

from __future__ import annotations

import hashlib
import hmac

import torch
from torch import Tensor

COLUMN = "column/"  # before the names of tensors that hold further columns of images
NOBODY = bytes(32)  # stands for "no group"


def keyed(key: str, text: str) -> str:
    """HMAC-SHA256 of a text under a key, both hex."""
    return hmac.new(bytes.fromhex(key), text.encode(), hashlib.sha256).hexdigest()


def mark(key: str, text: str | None) -> bytes:
    """`keyed` as 32 bytes; `NOBODY` for none."""
    return bytes.fromhex(keyed(key, text)) if text else NOBODY


def digests(values: list[bytes]) -> Tensor:
    """Digests as rows (N, 32) uint8."""
    return torch.tensor([list(value) for value in values], dtype=torch.uint8).view(-1, 32)


def texts(values: list[str]) -> Tensor:
    """Short texts as rows (N, 32) uint8, UTF-8, filled up with zeros."""
    return digests([value.encode().ljust(32, b"\0") for value in values])


def read_texts(values: Tensor) -> list[str]:
    """The way back."""
    return [row.rstrip(b"\0").decode() for row in rows(values)]


def rows(values: Tensor) -> list[bytes]:
    """The way back."""
    return [bytes(row) for row in values.tolist()]
