"""What is installed on demand, as `dynammo[export]`, and what is said where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dynammo.errors import DynammoError


class MissingExtra(DynammoError, ImportError):
    """A package that only an extra of this project brings is not installed."""


@contextmanager
def needs(extra: str, *packages: str) -> Iterator[None]:
    """Around imports of packages that an extra brings.

    Args:
        extra: its name in pyproject.toml.
        packages: what it brings, by import name; none: whatever is missing is blamed on it.

    Raises:
        MissingExtra: one of them is not installed. One line, which names the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if packages and missing not in packages:
            raise
        raise MissingExtra(
            f'{missing} is not installed; it comes with: pip install "dynammo[{extra}]"'
        ) from error
