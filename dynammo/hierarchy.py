"""What a user knows of how classes belong together: melanoma is malignant, a naevus benign.

A hierarchy is a mapping of classes, and of groups of classes, to their parents. Each has one or
none. What has none is the top of a tree; where there are several trees, also because a class is not
named at all, a root above them all is thought of. Height of a node: of a leaf 0, of any other one
more than of its highest child. H is the height of the root.

An answer c to an image of class t costs

    cost(t, c) = height(lowest common ancestor of t and c) / H,

0 where it is right, 1 where nothing but the root holds both. With one group over all classes every
error costs 1, and the mean over classes is 1 - mean class recall.

Sources: Deng et al. 2010 (ECCV), "What does classifying more than 10,000 image categories tell
us?", hierarchical cost; Bertinetto et al. 2020 (arXiv 1912.09393), "Making better mistakes".
Nothing here loads more than NumPy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dynammo.data.checks import problems_of_names

Parents = Mapping[str, str]


def problems_of_parents(parents: Parents) -> list[str]:
    """What makes a mapping no hierarchy, a line each: names that are none, and circles."""
    names = dict.fromkeys(name for pair in parents.items() for name in pair)
    problems = problems_of_names([*names])
    if not parents:
        problems.append("no class has a parent")
    seen: set[str] = set()
    for name in parents:
        path: dict[str, None] = {}  # in order
        while name in parents and name not in seen and name not in path:
            path[name] = None
            name = parents[name]
        if name in path:
            circle = [*path][[*path].index(name) :]
            problems.append(f"{' is below '.join(map(repr, [*circle, name]))}: a circle")
        seen.update(path)
    return problems


def ancestors(parents: Parents, name: str) -> list[str]:
    """All that a class or group is below, the nearest first."""
    found = []
    while name in parents:
        name = parents[name]
        found.append(name)
    return found


def unnamed(parents: Parents, classes: Iterable[str]) -> list[str]:
    """Classes that the hierarchy does not name: each is a tree of its own."""
    return [name for name in classes if name not in parents]


def groups(parents: Parents, classes: Sequence[str]) -> dict[str, list[int]]:
    """By group, in the hierarchy's order, the indices of the classes below it: of each group that
    has some and not all of them. A group of all is in every answer.
    """
    below: dict[str, list[int]] = {name: [] for name in parents.values()}
    for place, name in enumerate(classes):
        for group in ancestors(parents, name):
            below[group].append(place)
    return {name: own for name, own in below.items() if 0 < len(own) < len(classes)}


def costs(parents: Parents, classes: Sequence[str]) -> NDArray[np.float64]:
    """(C, C): the cost of answering each class (column) to an image of each (row), in [0, 1].

    Args:
        parents: the hierarchy. What it names counts for heights, whether it is learnt yet or not.
        classes: C names.
    """
    height = dict.fromkeys([*parents, *classes], 0)
    for name in [*height]:
        for steps, group in enumerate(ancestors(parents, name), start=1):
            height[group] = max(height.get(group, 0), steps)
    tops = [own for name, own in height.items() if name not in parents]
    highest = max(tops) + (len(tops) > 1)
    paths = [[name, *ancestors(parents, name)] for name in classes]
    found = np.zeros((len(classes), len(classes)))
    for row, path in enumerate(paths):
        for column, other in enumerate(paths):
            common = next((height[name] for name in path if name in other), highest)
            found[row, column] = common / highest if highest else 0.0
    return found


def mean_cost(
    targets: NDArray[np.integer], predicted: NDArray[np.integer], table: NDArray[np.float64]
) -> float:
    """Mean over the classes with images of the mean cost of their images' answers, in [0, 1]; NaN
    without images. Every class weighs the same, as in mean class recall.

    Args:
        targets: (N,) rows of the table.
        predicted: (N,) columns of it.
        table: (C, C), see `costs`.
    """
    images = np.bincount(targets, minlength=len(table))
    sums = np.bincount(targets, weights=table[targets, predicted], minlength=len(table))
    tested = images > 0
    return float((sums[tested] / images[tested]).mean()) if tested.any() else float("nan")


def within(
    targets: NDArray[np.integer], predicted: NDArray[np.integer], members: Sequence[int]
) -> NDArray[np.bool_]:
    """Of the images of a group's classes, in their order, whether the answer is one of them."""
    found: NDArray[np.bool_] = np.isin(predicted[np.isin(targets, members)], members)
    return found
