"""How far a merged adapter is trusted: a scale from 0, the bare backbone, to 1, found on held-out
images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from dynammo.checkpoint import Ref
from dynammo.state import State

SCALES = (0.0, 0.5, 1.0)
_BOTH_SIDES = 1.959964  # standard normal quantile of a two-sided 95 % interval


class Answers(TypedDict):
    """Of a class's held-out images, for each of `SCALES`: `better`, how many it alone has right,
    and `worse`, how many the bare backbone alone.
    """

    images: int
    better: list[int]
    worse: list[int]


class Trust(TypedDict):
    """How far the merged adapter is trusted: `scale`; `whole`, the adapter that was scaled by it;
    `answers` of all held-out images so far, by class.
    """

    scale: float
    whole: Ref
    answers: dict[str, Answers]


class Gain(NamedTuple):
    """Mean class recall at a scale minus that of the bare backbone, and its 95 % interval."""

    scale: float
    difference: float
    low: float
    high: float


def scaled(adapter: State, scale: float) -> State:
    """Of a linear adapter x + s (W x + b): nothing at s = 0, all of it at s = 1."""
    return {name: value * scale for name, value in adapter.items()}


def answered(
    targets: Tensor, predicted: Sequence[Tensor], names: Sequence[str]
) -> dict[str, Answers]:
    """Count what held-out images say of each scale.

    Args:
        targets: (N,) indices into `names`.
        predicted: for each of `SCALES` (N,) class indices.
        names: of the classes.
    """
    right = torch.stack(list(predicted)) == targets
    bare = right[SCALES.index(0.0)]
    found: dict[str, Answers] = {}
    for label in targets.unique().tolist():
        own = targets == label
        found[names[label]] = {
            "images": int(own.sum()),
            "better": (right & ~bare)[:, own].sum(1).tolist(),
            "worse": (~right & bare)[:, own].sum(1).tolist(),
        }
    return found


def gains(answers: Mapping[str, Answers]) -> list[Gain]:
    """Of each of `SCALES`, paired by image.

    For class c with n_c images, b_c answered better and w_c worse than by the bare backbone

        d_c = (b_c - w_c) / n_c,    v_c = ((b_c + w_c) / n_c - d_c^2) / n_c,

    and over C classes d = mean d_c, with the interval d -+ 1.96 sqrt(sum_c v_c) / C.

    Args:
        answers: by class; at least one.

    Source: the paired difference of proportions of McNemar's table, for example Agresti 2013,
        Categorical Data Analysis, section 11.1.
    """
    found = []
    for place, scale in enumerate(SCALES):
        difference = variance = 0.0
        for own in answers.values():
            better, worse = own["better"][place], own["worse"][place]
            mean = (better - worse) / own["images"]
            difference += mean / len(answers)
            variance += ((better + worse) / own["images"] - mean**2) / own["images"]
        margin = _BOTH_SIDES * math.sqrt(max(variance, 0.0)) / len(answers)
        found.append(Gain(scale, difference, difference - margin, difference + margin))
    return found


def trusted(answers: Mapping[str, Answers]) -> Gain:
    """The largest scale that held-out images do not show to be worse than the bare backbone: whose
    interval reaches 0. Without an answer that is 1, of which nothing is known.
    """
    if not answers:
        return Gain(SCALES[-1], 0.0, -1.0, 1.0)
    return max(gain for gain in gains(answers) if gain.high >= 0)
