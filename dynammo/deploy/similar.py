"""The remembered pictures that a model sees most like an image: examples of what it goes by."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from dynammo.data.formats.pictures import Pixels
from dynammo.deploy.predictor import Classifier, Predictor
from dynammo.heads.scaling import power_normalise
from dynammo.network.features import extract_features


class Remembered(NamedTuple):
    """Pictures (M, S, S, 3) that are kept, the class of each, and their features (M, D)."""

    pictures: NDArray[np.uint8]
    labels: list[str]
    features: Tensor


class Alike(NamedTuple):
    """A remembered picture, its class, and how like an image it is: 1 is the same."""

    picture: Pixels
    label: str
    likeness: float


def remember(predictor: Predictor, pictures: NDArray[np.uint8], labels: list[str]) -> Remembered:
    """Pictures with what the model sees in them.

    Args:
        predictor: the model.
        pictures: (M, S, S, 3) of its size.
        labels: M names of classes.
    """
    return Remembered(pictures, labels, _features(predictor, pictures))


def most_alike(
    predictor: Predictor, image: Pixels, remembered: Remembered, count: int = 3
) -> list[Alike]:
    """The remembered pictures nearest to an image, the nearest first.

    Likeness is the cosine of the features as the head takes them. What is near need not be of the
    class that is answered: the head weighs features, the cosine does not.

    Args:
        predictor: the model.
        image: (S, S, 3) of its size.
        remembered: of M pictures, by the same model.
        count: how many; all of them where M is smaller.
    """
    own = _features(predictor, image[None])
    cosines = (remembered.features @ own[0]).tolist()
    nearest = sorted(range(len(cosines)), key=lambda place: -cosines[place])[:count]
    return [
        Alike(remembered.pictures[place], remembered.labels[place], cosines[place])
        for place in nearest
    ]


def _features(predictor: Predictor, pictures: NDArray[np.uint8]) -> Tensor:
    """(M, D) float64 of length 1, on the CPU."""
    model: Classifier = predictor.model
    features = extract_features(model.network, torch.from_numpy(pictures).permute(0, 3, 1, 2))
    if model.power is not None:
        features = power_normalise(features, model.power)
    return normalize(features.double(), dim=1)
