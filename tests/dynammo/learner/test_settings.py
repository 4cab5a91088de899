"""What a learner begins with, and what may change from batch to batch."""

from __future__ import annotations

import pytest

from dynammo.errors import ConfigError
from dynammo.learner.settings import check_again, first_settings, next_settings


def test_a_new_learner_has_the_methods_that_learn_again_unless_others_are_named() -> None:
    assert first_settings("skin", None, {}).methods == ["merged", "frozen"]
    assert first_settings("skin", None, {}).data.name == "skin"
    named = first_settings("skin", None, {"methods": ["merged", "ncm"]})
    with pytest.raises(ConfigError, match="ncm cannot learn further images of known classes"):
        check_again(named, ["naevus"])
    check_again(named, [])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"methods": ["frozen"]}, "a learner needs merged"),
        (
            {"methods": ["merged", "ncm"], "retention.test": "features"},
            r"retention\.test features is for merged and frozen alone",
        ),
    ],
)
def test_what_is_no_learner_is_refused(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        first_settings("skin", None, overrides)


def test_what_a_learner_is_stays_and_how_it_is_taught_may_change() -> None:
    config = first_settings("skin", None, {"seed": 3})
    changed = next_settings(config, {"train.epochs": 1, "memory.size": 90, "seed": 3})
    assert (changed.train.epochs, changed.memory.size, changed.seed) == (1, 90, 3)
    with pytest.raises(ConfigError, match="seed cannot change after the first batch"):
        next_settings(config, {"seed": 4})
