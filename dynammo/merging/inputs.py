"""What a merge rule is given: inputs beside the adapters, and the options of the configuration.

Its keyword arguments say which. One without a default is an input, and its name one of `INPUTS`;
one with a default is an option.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import Parameter, signature
from typing import Any

from dynammo.errors import ConfigError
from dynammo.merging import MERGE_RULES
from dynammo.state import State

INPUTS = {
    "samples": "number of training images of each adapter's task",
    "base": "state of the adapter before any training, drawn from the experiment's seed",
    "seed": "for random choices",
    "fisher": "diagonal Fisher information of each adapter, one at a time",
    "grams": "Gram matrices of the inputs of each adapter's linear maps, one at a time",
}


def inputs_of(rule: Callable[..., Any]) -> set[str]:
    """Which of `INPUTS` a rule asks for.

    Raises:
        ConfigError: it asks for something else.
    """
    wanted = {p.name for p in _keywords(rule) if p.default is Parameter.empty}
    if unknown := sorted(wanted - INPUTS.keys()):
        raise ConfigError(
            [
                f"merge rule {rule.__name__!r}: {', '.join(unknown)} has no default and is none of "
                f"the inputs {', '.join(INPUTS)}"
            ]
        )
    return wanted


def running_form(rule: Callable[..., Any]) -> Callable[[State, State, int], State] | None:
    """`running_<rule>(merged, adapter, n)` beside a rule, where its file has one.

    It gives from what was merged of n - 1 adapters and the n-th what the rule gives of all n, so
    that merging takes as long after fifty tasks as after two.
    """
    module = import_module(rule.__module__)
    return getattr(module, f"running_{rule.__name__}", None)


def check_options(rule: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a rule does not have; their values are the rule's to check.

    Args:
        rule: name in `MERGE_RULES`.
        options: as configured.

    Raises:
        ConfigError: all unknown options at once.
    """
    known = [p.name for p in _keywords(MERGE_RULES[rule]) if p.default is not Parameter.empty]
    if unknown := sorted(options.keys() - set(known)):
        raise ConfigError(
            [
                f"merge.options for {rule!r}: unknown {', '.join(unknown)}; "
                f"known: {', '.join(known) or 'none'}"
            ]
        )


def _keywords(rule: Callable[..., Any]) -> list[Parameter]:
    """All arguments but the first, which is the adapters."""
    return list(signature(rule).parameters.values())[1:]
