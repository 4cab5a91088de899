"""One head over all classes from the heads of all tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dynammo.state import State


def merge_task_heads(heads: Sequence[State]) -> State:
    """A head over all classes seen, from the heads that the tasks' adapters were trained with.

    Head k was trained on all of task k's images, against "others" where there were any. How far an
    output lies above "others" tells a class from everything outside its task, so

        w_c = w_k[c] - w_k[others],    b_c = b_k[c] - b_k[others].

    Args:
        heads: a task each: `weight` (|C_k| + 1, D) and `bias` (|C_k| + 1,), "others" last.

    Returns:
        `weight` (C, D) and `bias` (C,), classes in order of arrival.
    """
    return {
        name: torch.cat([head[name][:-1] - head[name][-1:] for head in heads])
        for name in ("weight", "bias")
    }
