"""A table from a name to an object that is imported only when it is asked for.

Each kind of part (adapters, merge rules, head rules, methods, data sources) has one table, in its
package's `__init__.py`. Adding a part is one new file and one line in that table, or an entry point
of another installed package. Because nothing is imported until it is chosen, the code version of a
pipeline step (see `tasks/support/caching.py`) covers the chosen part alone: adding a merge rule
does not retrain anybody's adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from operator import attrgetter
from typing import TypeVar, cast

from dynammo.errors import ConfigError

Part = TypeVar("Part")


class Registry(Mapping[str, Part]):
    """Maps names to `"module:attribute"` targets: built-in ones, then those of other packages.

    Other packages name theirs in an entry point group. A built-in name always means the built-in
    part; that a package claims it, or two packages claim one name, is an error as soon as the
    packages are looked at.

    Args:
        kind: what the entries are, for messages ("adapter", "merge rule").
        targets: name -> "package.module:attribute".
        group: of entry points, such as "dynammo.adapters"; none: no other package has a say.
    """

    def __init__(self, kind: str, targets: dict[str, str], group: str | None = None) -> None:
        self.kind = kind
        self.group = group
        self._targets = dict(targets)
        self._found: dict[str, str] | None = None

    def __getitem__(self, name: str) -> Part:
        """Import and return the object; raises `ConfigError` naming the known entries."""
        target = self._target(name)
        module, _, attribute = target.partition(":")
        try:
            return cast(Part, attrgetter(attribute)(import_module(module)))
        except (ImportError, AttributeError) as error:
            if name in self._targets:
                raise
            problem = f"{self.kind} {name!r} ({target}) cannot be imported: {error}"
            raise ConfigError([problem]) from error

    def module(self, name: str) -> str:
        """The dotted name of the module that holds the entry."""
        return self._target(name).partition(":")[0]

    def add(self, name: str, target: str) -> None:
        """Register a part at run time, for code outside this package.

        Raises:
            ConfigError: the name is taken by another target.
        """
        if self._all().get(name, target) != target:
            raise ConfigError([f"{self.kind} {name!r} is already registered"])
        self._targets[name] = target

    def check(self) -> None:
        """Look at the installed packages now, so that a clash shows before any work is done.

        Raises:
            ConfigError: a package claims a name that is taken, or its entry point is malformed. All
                problems at once.
        """
        self._installed()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __contains__(self, name: object) -> bool:
        return name in self._targets or name in self._installed()

    def _target(self, name: str) -> str:
        if name in self._targets:
            return self._targets[name]
        try:
            return self._installed()[name]
        except KeyError:
            known = ", ".join(sorted(self))
            raise ConfigError([f"unknown {self.kind} {name!r}; known: {known}"]) from None

    def _all(self) -> dict[str, str]:
        return {**self._targets, **self._installed()}

    def _installed(self) -> dict[str, str]:
        """What other packages register, read once."""
        if self._found is None:
            self._found = self._read(self.group) if self.group else {}
        return self._found

    def _read(self, group: str) -> dict[str, str]:
        from importlib.metadata import entry_points

        found: dict[str, tuple[str, str]] = {}
        problems = []
        for entry in entry_points(group=group):
            package = entry.dist.name if entry.dist else "unknown"
            part = f"{self.kind} {entry.name!r} of the package {package}"
            target, (other, owner) = entry.value, found.get(entry.name, (entry.value, package))
            if not all(target.partition(":")):
                problems.append(f"{part}: {target!r} is not module:attribute")
            elif self._targets.get(entry.name, target) != target:
                problems.append(f"{part}: the name is taken by the built-in {self.kind}")
            elif other != target:
                problems.append(f"{part}: the name is taken by the package {owner}")
            else:
                found[entry.name] = (target, package)
        if problems:
            raise ConfigError(problems)
        return {name: target for name, (target, _) in sorted(found.items())}
