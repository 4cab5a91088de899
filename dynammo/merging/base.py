"""What an entry of `MERGE_RULES` is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from dynammo.state import State


class MergeRule(Protocol):
    """Makes one adapter of several: a function.

    A rule that holds all of them in memory at once has `STREAMS = False` in its module.
    """

    def __call__(self, adapters: Iterable[State], **arguments: Any) -> State:
        """The merged adapter.

        Args:
            adapters: read one at a time, in the order of their tasks.
            arguments: inputs that the rule asks for (`dynammo.merging.inputs`), `merge.options`.

        Raises:
            ValueError: no adapters, ones that do not fit together, or an option's value.
        """
        ...
