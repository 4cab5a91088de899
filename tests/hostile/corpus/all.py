"""Every case, and those that `make test` tries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.hostile.corpus import batches, commands, models, pictures, settings
from tests.hostile.corpus.judging import Case

MODULES = (settings, pictures, batches, models, commands)
WHOLE = {"values", "learners", "results", "manifests", "classes", "streams"}  # milliseconds each
SHARE = 6  # of the other groups every sixth


def all_cases() -> Iterator[Case]:
    """Module by module."""
    for module in MODULES:
        yield from module.cases()


def quick_cases() -> Iterator[Case]:
    """Some of each group, always the same."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in all_cases():
        groups[case.group].append(case)
    for name, group in groups.items():
        yield from group if name in WHOLE else group[::SHARE]
