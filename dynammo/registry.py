"""A table from a name to an object that is imported only when it is asked for.

Each kind of part (adapters, merge rules, data sources) has one table, in its package's
`__init__.py`. Adding a part is one new file and one line in that table. Because nothing is imported
until it is chosen, the code version of a pipeline step (see `tasks/support/caching.py`) covers the
chosen part alone: adding a merge rule does not retrain anybody's adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from dynammo.errors import ConfigError


class Registry(Mapping[str, Any]):
    """Maps names to `"module:attribute"` targets.

    Args:
        kind: what the entries are, for messages ("adapter", "merge rule").
        targets: name -> "package.module:attribute".
    """

    def __init__(self, kind: str, targets: dict[str, str]) -> None:
        self.kind = kind
        self._targets = dict(targets)

    def __getitem__(self, name: str) -> Any:
        """Import and return the object; raises `ConfigError` naming the known entries."""
        module, _, attribute = self._target(name).partition(":")
        return getattr(import_module(module), attribute)

    def module(self, name: str) -> str:
        """The dotted name of the module that holds the entry."""
        return self._target(name).partition(":")[0]

    def add(self, name: str, target: str) -> None:
        """Register a part at run time, for code outside this package.

        Raises:
            ConfigError: the name is taken by another target.
        """
        if self._targets.get(name, target) != target:
            raise ConfigError([f"{self.kind} {name!r} is already registered"])
        self._targets[name] = target

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    def __contains__(self, name: object) -> bool:
        return name in self._targets

    def _target(self, name: str) -> str:
        try:
            return self._targets[name]
        except KeyError:
            known = ", ".join(sorted(self._targets))
            raise ConfigError([f"unknown {self.kind} {name!r}; known: {known}"]) from None
