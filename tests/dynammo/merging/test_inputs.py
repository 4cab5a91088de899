from collections.abc import Iterable
from typing import Any

import pytest

from dynammo.errors import ConfigError
from dynammo.merging import MERGE_RULES
from dynammo.merging.inputs import INPUTS, check_options, inputs_of

NEEDS = {
    "average": set(),
    "dare": {"base", "seed"},
    "ema": set(),
    "last": set(),
    "fisher": {"fisher"},
    "magmax": {"base"},
    "regmean": {"grams"},
    "task_arithmetic": {"base"},
    "ties": {"base"},
    "weighted": {"samples"},
}


def test_what_each_rule_asks_for() -> None:
    assert {name: inputs_of(MERGE_RULES[name]) for name in NEEDS} == NEEDS
    assert set().union(*map(inputs_of, MERGE_RULES.values())) == INPUTS.keys()


def test_an_argument_without_default_that_is_no_input() -> None:
    def mine(adapters: Iterable[Any], base: Any, strength: float, height: float = 1) -> None: ...

    message = r"merge rule 'mine': strength has no default and is none of the inputs samples, base"
    with pytest.raises(ConfigError, match=message):
        inputs_of(mine)


def test_all_unknown_options_are_named() -> None:
    check_options("ties", {"keep": 0.3})
    message = "merge.options for 'ties': unknown base, kep; known: keep, scale"
    with pytest.raises(ConfigError, match=message):
        check_options("ties", {"kep": 0.3, "scale": 1, "base": None})
    with pytest.raises(ConfigError, match="unknown decay; known: none"):
        check_options("average", {"decay": 0.3})
