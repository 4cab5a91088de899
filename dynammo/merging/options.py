"""Checks of a merge rule's options."""

from __future__ import annotations

from math import inf, isfinite


def check_number(name: str, value: float, least: float = 0.0, most: float = inf) -> None:
    """Refuse an option that is no number within its limits.

    Raises:
        ValueError: it is no finite number, or below `least` or above `most`.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not isfinite(value) or not least <= value <= most:
        limits = f"at least {least:g}" + (f" and at most {most:g}" if isfinite(most) else "")
        raise ValueError(f"{name} must be a number, {limits}, got {value!r}")
