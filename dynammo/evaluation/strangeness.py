"""How little an answer speaks for any class: by this "none of the classes I know" is said.

Nothing here loads more than NumPy: `dynammo predict` answers with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def strangeness(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Mean log-probability of the classes, at most -log C, where all are equally probable.

        s(x) = 1/C sum_c log p_c(x) = -log sum_c exp z_c(x),    z the logits, their mean taken away

    That is the energy score of centred logits, which the discriminant head's are by themselves
    (`dynammo.heads.discriminant.linear_discriminant`), so that probabilities suffice.

    It speaks of classes alike to the known ones. Images far from all may have a sure answer, and so
    a low strangeness; the distance in the features sees them (`dynammo.heads.mahalanobis`).

    Args:
        probabilities: (N, C).

    Returns:
        (N,) float64, higher where an image is stranger.

    Source: Liu et al. 2020 (arXiv 2010.03759).
    """
    smallest = np.finfo(np.float64).tiny
    found: NDArray[np.float64] = np.log(np.maximum(probabilities, smallest)).mean(axis=1)
    return found
