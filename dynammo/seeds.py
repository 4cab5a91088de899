"""Independent seeds for every random choice of an experiment, all from one."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A seed for one purpose: the first 8 bytes of SHA-256 over seed and purpose, below 2^63.

    Each step has its own, so that running one more or one fewer random draw in a step leaves the
    others as they were.

    Args:
        seed: the experiment's.
        purpose: names and numbers, such as "adapter", 3.
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
