"""What makes a method learn again, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dynammo.config import load_config
from tasks.learn_method import method_config
from tasks.support.caching import step_key


def key(name: str, **overrides: Any) -> str:
    config = load_config(None, {k.replace("__", "."): v for k, v in overrides.items()})
    return step_key("learn task", {"config": method_config(config, name)}, ["tasks.learn_method"])


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("dynammo.methods.ewc", {"ewc"}),
        ("dynammo.methods.training", {"ewc", "icarl", "acmap"}),
        ("dynammo.methods.prototypes", {"icarl", "ncm", "acmap"}),
        ("dynammo.methods", set()),  # the table of names, one line longer
        ("dynammo.methods.base", {"ewc", "icarl", "ncm", "acmap"}),
        ("dynammo.adapters.linear", {"acmap"}),
    ],
)
def test_changed_code_is_learnt_with_again_by_the_methods_that_run_it(
    change_code: Callable[[str], None], module: str, names: set[str]
) -> None:
    before = {name: key(name) for name in ("ewc", "icarl", "ncm", "acmap")}
    change_code(module)
    assert {name for name in before if key(name) != before[name]} == names


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ({"train__epochs": 3}, {"ewc", "acmap"}),
        ({"train__network_learning_rate": 0.1}, {"ewc"}),
        ({"adapter__name": "conv"}, {"acmap"}),
        ({"train__optimiser": "adamw"}, {"acmap"}),
        ({"method_options__ewc": {"strength": 1}}, {"ewc"}),
        ({"methods": ["frozen"], "merge__rule": "average", "memory__size": 9}, set()),
        ({"seed": 2}, {"ewc", "ncm", "acmap"}),
    ],
)
def test_a_changed_setting_is_learnt_with_again_by_the_methods_that_use_it(
    overrides: dict[str, Any], names: set[str]
) -> None:
    found = {name for name in ("ewc", "ncm", "acmap") if key(name) != key(name, **overrides)}
    assert found == names
