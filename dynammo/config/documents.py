"""Read YAML that somebody wrote: whole, once for each key, and of a size that fits a configuration.

PyYAML lets the last of several equal keys win, follows an alias into itself, and lets aliases of
aliases grow without limit. Here each of these is an error.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from dynammo.errors import ConfigError

_MOST_VALUES = 100_000  # in a document, with every alias written out


def read_yaml(path: str | Path) -> Any:
    """The document in a file.

    Raises:
        ConfigError: it cannot be read, is not UTF-8, or is refused by `parse_yaml`.
    """
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"cannot read {path}: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            [f"{path} is not UTF-8 (byte {error.start}: {error.reason}): save it as UTF-8"]
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"{path} is not valid YAML: {' '.join(str(error).split())}"]) from None


def parse_yaml(text: str) -> Any:
    """The document in a text.

    Raises:
        yaml.YAMLError: it is not YAML, names a key twice, contains itself, is nested deeper than
            Python can follow, or has too many values.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except ValueError as error:  # a date that does not exist
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


def _count(node: yaml.Node, counts: dict[int, int | None]) -> int:
    """How many values a node has, with every alias written out; refuses it where that is wrong.

    Args:
        node: to be looked at.
        counts: of the nodes seen before, by identity; none for those that the node is within.
    """
    if id(node) in counts:
        known = counts[id(node)]
        if known is None:
            raise yaml.MarkedYAMLError(problem="it contains itself", problem_mark=node.start_mark)
        return known
    counts[id(node)] = None
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated_keys(node)
    total = 1 + sum(_count(child, counts) for child in _children(node))
    if total > _MOST_VALUES:
        raise yaml.MarkedYAMLError(
            problem=f"it has more than {_MOST_VALUES:,} values", problem_mark=node.start_mark
        )
    counts[id(node)] = total
    return total


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    seen: set[Hashable] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add((key.tag, key.value))
