"""What an entry of `DATA_SOURCES` is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from dynammo.data.samples import ImageSet


class DataSource(Protocol):
    """Lists images: a function."""

    def __call__(self, path: Path, **options: Any) -> ImageSet:
        """The files with their split, class and group, not decoded.

        Args:
            path: `data.path`.
            options: `data.options`.

        Raises:
            DataError: files that are missing or cannot be made sense of. All problems at once.
        """
        ...
