"""Head rules: from what is kept of all classes seen, one head over all of them.

`dynammo.head_rules.base` says what a rule is. To add one, write a file here and a line below.
"""

from dynammo.registry import Registry

HEAD_RULES = Registry(
    "head rule",
    {
        "fine_tune": "dynammo.head_rules.fine_tune:FineTune",
        "discriminant": "dynammo.head_rules.discriminant:Discriminant",
    },
)
