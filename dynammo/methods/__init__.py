"""Methods of class-incremental learning: what a run can learn and measure, all treated alike.

`dynammo.methods.base` says what a method is. To add one, write a file here and a line below. The
order of the lines is the order of tables and figures.
"""

from dynammo.registry import Registry

METHODS = Registry(
    "method",
    {
        "merged": "dynammo.methods.stepwise:Merged",
        "unmerged": "dynammo.methods.stepwise:Unmerged",
        "frozen": "dynammo.methods.stepwise:Frozen",
    },
)
