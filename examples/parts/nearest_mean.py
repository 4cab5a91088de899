"""The class whose mean is nearest."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from dynammo.config import HeadConfig
from dynammo.heads.base import Evidence
from dynammo.heads.statistics import ClassStatistics
from dynammo.state import State


class NearestMean:
    """argmin_c |x - mu_c|, which is argmax_c of mu_c^T x - |mu_c|^2 / 2."""

    evidence: ClassVar[Literal["exemplars", "statistics"]] = "statistics"

    def __call__(self, evidence: Evidence, config: HeadConfig) -> State:
        """The head.

        Raises:
            ValueError: no statistics.
        """
        if evidence.statistics is None:
            raise ValueError("the nearest mean needs class statistics")
        return self._head(evidence.statistics, config)

    def again(
        self, head: State, before: ClassStatistics, now: ClassStatistics, config: HeadConfig
    ) -> State:
        """The head for the classes that are left."""
        return self._head(now, config)

    def _head(self, statistics: ClassStatistics, config: HeadConfig) -> State:
        means = statistics.means
        return {
            "weight": means.float(),
            "bias": -0.5 * means.square().sum(1).float(),
            # The statistics are of features that are normalised so; the head's must be, too.
            "power": torch.tensor(config.power, dtype=torch.float64),
        }
