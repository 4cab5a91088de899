"""How little an answer speaks for any class: by this "none of the classes I know" is said.

Nothing here loads more than NumPy: `dynammo predict` answers with it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynammo.errors import CheckpointError
from dynammo.evaluation.appearance import KINDS, Appearance, measure


class UnknownLimits(NamedTuple):
    """From where on an image is of none of the classes: `Unknown` of `model.json`, for any engine.

    Args:
        threshold: of the answer's strangeness.
        appearance: the pictures that the model is made for; None: nothing is said of it.
        distance: from them, beyond which a picture is of another kind.
    """

    threshold: float
    appearance: Appearance | None
    distance: float

    @classmethod
    def read(cls, document: Any) -> UnknownLimits:
        """What `model.json` says.

        Raises:
            CheckpointError: it is no such thing.
        """
        limit = document.get("threshold") if isinstance(document, dict) else None
        if not (isinstance(limit, float) and limit <= 0):
            raise CheckpointError("unknown: expected a threshold of at most 0")
        if (own := document.get("appearance")) is None:
            return cls(limit, None, np.inf)
        try:
            means, precision = (np.array(own[name], float) for name in ("means", "precision"))
            found = cls(limit, Appearance(means, precision), float(own["threshold"]))
            if precision.shape != (KINDS, KINDS) or means.shape[1:] != (KINDS,) or not len(means):
                raise ValueError
            return found
        except (KeyError, TypeError, ValueError):
            text = f"unknown: appearance: expected means, precision of {KINDS} and threshold"
            raise CheckpointError(text) from None

    def exceeded(
        self, probabilities: NDArray[np.floating[Any]], pictures: NDArray[np.uint8]
    ) -> NDArray[np.bool_]:
        """(N,): whether the answers (N, C) or the pictures (N, S, S, 3) are too strange."""
        near, far = self.beyond(probabilities, measure(pictures) if self.appearance else None)
        return near | far

    def beyond(
        self, probabilities: NDArray[np.floating[Any]], looks: NDArray[np.floating[Any]] | None
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Twice (N,): whether the answers (N, C) are too strange, and whether the pictures are, by
        what `measure` says of them (N, K), which may be None where it is not gone by.
        """
        near: NDArray[np.bool_] = strangeness(probabilities) > self.threshold
        if self.appearance is None or looks is None:
            return near, np.zeros_like(near)
        return near, self.appearance.distance(looks) > self.distance


def strangeness(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Mean log-probability of the classes, at most -log C, where all are equally probable.

        s(x) = 1/C sum_c log p_c(x) = -log sum_c exp z_c(x),    z the logits, their mean taken away

    That is the energy score of centred logits, which the discriminant head's are by themselves
    (`dynammo.heads.discriminant.linear_discriminant`), so that probabilities suffice.

    It speaks of classes alike to the known ones. Images far from all may have a sure answer, and so
    a low strangeness; `dynammo.evaluation.appearance` sees them.

    Args:
        probabilities: (N, C).

    Returns:
        (N,) float64, higher where an image is stranger.

    Source: Liu et al. 2020 (arXiv 2010.03759).
    """
    smallest = np.finfo(np.float64).tiny
    found: NDArray[np.float64] = np.log(np.maximum(probabilities, smallest)).mean(axis=1)
    return found
