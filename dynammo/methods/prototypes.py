"""Predicting by the most similar prototype."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from dynammo.heads.linear import Scores

TEMPERATURE = 0.1


def cosine_scores(features: Tensor, prototypes: Tensor) -> Scores:
    """The class whose prototype has the largest cosine with the features.

    Of unit vectors this is the nearest one, too. `knownness` is the largest cosine.

    Args:
        features: (N, D).
        prototypes: (C, D), of any length but 0.
    """
    cosines = normalize(features.double(), dim=1) @ normalize(prototypes.double(), dim=1).T
    return similarity_scores(cosines)


def similarity_scores(similarities: Tensor) -> Scores:
    """The most similar class. The probabilities are softmax(s / 0.1): they keep the order of the
    similarities and are not calibrated, for these methods give none.

    Args:
        similarities: (N, C).
    """
    probabilities = (similarities.double() / TEMPERATURE).softmax(1)
    confidence, predicted = probabilities.max(1)
    return Scores(predicted, probabilities, confidence, similarities.max(1).values)
