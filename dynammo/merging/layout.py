"""The check that adapters to be merged fit together."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def check_same_layout(first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Refuse to merge adapters of different kinds or sizes.

    Raises:
        ValueError: a name is in one state only, or a shape differs; all differences are listed.
    """
    problems = [f"{name} is in one adapter only" for name in sorted(first.keys() ^ other.keys())]
    problems += [
        f"{name}: shape {tuple(first[name].shape)} against {tuple(other[name].shape)}"
        for name in sorted(first.keys() & other.keys())
        if first[name].shape != other[name].shape
    ]
    if problems:
        raise ValueError("adapters cannot be merged: " + "; ".join(problems))
