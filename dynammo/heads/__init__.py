"""Head rules: from what is kept of all classes seen, one head over all of them.

`dynammo.heads.base` says what a rule is. To add one, write a file here and a line below.
"""

from dynammo.registry import Registry

HEAD_RULES = Registry(
    "head rule",
    {
        "fine_tune": "dynammo.heads.fine_tune:FineTune",
        "discriminant": "dynammo.heads.discriminant:Discriminant",
    },
)
