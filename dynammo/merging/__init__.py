"""Merge rules: n adapters' state dicts in, one state dict out.

A rule is a function `rule(adapters: Iterable[State], *, <inputs>, <options>) -> State`. It may
stream: the caller loads one adapter at a time. Keyword arguments without a default are inputs that
it needs beside the adapters (`dynammo.merging.inputs`), those with one are its options in the
configuration. To add one, write a file here and a line below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynammo.registry import Registry

if TYPE_CHECKING:  # importing the table imports no part
    from dynammo.merging.base import MergeRule

MERGE_RULES: Registry[MergeRule] = Registry(
    "merge rule",
    {
        "average": "dynammo.merging.average:average",
        "dare": "dynammo.merging.dare:dare",
        "ema": "dynammo.merging.ema:ema",
        "fisher": "dynammo.merging.fisher:fisher",
        "last": "dynammo.merging.last:last",
        "magmax": "dynammo.merging.magmax:magmax",
        "regmean": "dynammo.merging.regmean:regmean",
        "task_arithmetic": "dynammo.merging.task_vectors:task_arithmetic",
        "ties": "dynammo.merging.ties:ties",
        "weighted": "dynammo.merging.weighted:weighted",
    },
    group="dynammo.merge_rules",
)
