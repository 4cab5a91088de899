"""The paper's head: fine-tuned on the class-balanced memory."""

from __future__ import annotations

from typing import ClassVar, Literal

from dynammo.config import HeadConfig
from dynammo.heads.base import Evidence
from dynammo.heads.linear import fine_tune_head, new_head
from dynammo.merging.heads import merge_task_heads
from dynammo.seeds import derive_seed
from dynammo.state import State


class FineTune:
    """Balanced fine-tuning, see `dynammo.heads.linear.fine_tune_head`.

    Starts from a new head or, with `head.init: task_heads`, from the merged heads of the tasks.
    Source: arXiv 2404.14099.
    """

    evidence: ClassVar[Literal["exemplars", "statistics"]] = "exemplars"

    def __call__(self, evidence: Evidence, config: HeadConfig) -> State:
        """The head.

        Raises:
            ValueError: no exemplars.
        """
        if evidence.exemplars is None or evidence.labels is None:
            raise ValueError("balanced fine-tuning needs exemplars")
        classes = int(evidence.labels.max()) + 1
        if config.init == "task_heads" and evidence.task_heads:
            initial = merge_task_heads(evidence.task_heads)
        else:
            features = evidence.exemplars.shape[-1]
            initial = new_head(features, classes, derive_seed(evidence.seed, "head", classes))
        order = derive_seed(evidence.seed, "fine-tune", classes)
        return fine_tune_head(evidence.exemplars, evidence.labels, initial, config, order)
