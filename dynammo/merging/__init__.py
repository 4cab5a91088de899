"""Merge rules: n adapters' state dicts in, one state dict out.

A rule is a function `rule(adapters: Iterable[State]) -> State`. It may stream: the caller loads one
adapter at a time. To add one, write a file here and a line below.
"""

from dynammo.registry import Registry

MERGE_RULES = Registry(
    "merge rule",
    {
        "average": "dynammo.merging.average:average",
    },
)
