"""Head rules: from what is kept of all classes seen, one head over all of them.

`dynammo.heads.base` says what a rule is. To add one, write a file here and a line below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynammo.registry import Registry

if TYPE_CHECKING:  # importing the table imports no part
    from dynammo.heads.base import HeadRule

HEAD_RULES: Registry[type[HeadRule]] = Registry(
    "head rule",
    {
        "fine_tune": "dynammo.heads.fine_tune:FineTune",
        "discriminant": "dynammo.heads.discriminant:Discriminant",
    },
    group="dynammo.heads",
)
