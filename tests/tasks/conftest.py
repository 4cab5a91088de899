"""What tests of cache keys share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tasks.support import caching


@pytest.fixture
def change_code(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make a module's code look changed."""
    original = caching._code_hash

    def change(changed: str) -> None:
        monkeypatch.setattr(
            caching, "_code_hash", lambda name: "new" if name == changed else original(name)
        )

    return change
