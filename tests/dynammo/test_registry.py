import pytest

from dynammo.adapters import ADAPTERS
from dynammo.data import DATA_SOURCES
from dynammo.errors import ConfigError
from dynammo.merging import MERGE_RULES
from dynammo.registry import Registry


@pytest.mark.parametrize("registry", [ADAPTERS, MERGE_RULES, DATA_SOURCES], ids=lambda r: r.kind)
def test_every_entry_can_be_imported(registry: Registry) -> None:
    assert registry
    for name in registry:
        assert callable(registry[name])


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown merge rule 'mean'; known: average"):
        MERGE_RULES["mean"]


def test_a_name_is_registered_once() -> None:
    registry = Registry("part", {"a": "math:sqrt"})
    registry.add("b", "math:floor")
    registry.add("b", "math:floor")
    assert registry["b"](1.5) == 1
    with pytest.raises(ConfigError, match="already registered"):
        registry.add("a", "math:floor")
