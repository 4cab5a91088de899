"""RegMean: the linear map whose outputs are closest to all adapters' on their own inputs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dynammo.merging.layout import check_same_layout
from dynammo.merging.options import check_number
from dynammo.state import State

_RIDGE = 1e-6


def regmean(adapters: Iterable[State], *, grams: Iterable[State], alpha: float = 0.9) -> State:
    """V = (sum_t V_t H_t) (sum_t H_t)^-1 for every linear map V = [W b].

    H_t = a G_t + (1 - a) diag(G_t), with G_t the mean over the inputs x of task t of
    (x, 1)(x, 1)^T, where the 1 stands for the bias. With a = 1, V is the least-squares solution of
    sum_t mean_x |V (x, 1) - V_t (x, 1)|^2: it comes as close to what each adapter adds to its own
    task's inputs as one linear map can. A smaller a trusts correlations of the inputs less. (In the
    paper W is applied from the right, so its formula is the transpose of this one.) Means, not
    sums: every task counts the same, however many images it has.

    In directions that no input has, V is the adapters' average: to each H_t is added 1e-6 I, times
    the mean of all diagonals. There is no BatchNorm in linear maps; what is not part of one is
    refused. One adapter is held at a time.

    Args:
        adapters: in any order.
        grams: of each, in the same order: name of a layer -> G_t, (C + 1, C + 1), or (C, C) if
            the layer has no bias (`dynammo.merging.measures.gram_matrices`).
        alpha: a, in 0..1.

    Raises:
        ValueError: no adapters, adapters and matrices that do not fit together, or a not in
            range.

    Source: arXiv 2212.09849; the ridge is this project's.
    """
    check_number("alpha", alpha, 0, 1)
    first: State | None = None
    sums: dict[str, list[Tensor]] = {}  # of H_t, V_t H_t, the mean of G_t's diagonal, and V_t
    count = 0
    for adapter, own in zip(adapters, grams, strict=True):
        first = dict(adapter) if first is None else first
        check_same_layout(first, adapter)
        extra = adapter.keys() - {f"{n}.{part}" for n in own for part in ("weight", "bias")}
        if extra:
            raise ValueError(f"not part of a linear map: {', '.join(sorted(extra))}")
        for name, gram in own.items():
            joined, diagonal = _join(adapter, name), gram.double().diagonal()
            share = alpha * gram.double() + (1 - alpha) * diagonal.diag()
            found = [share, joined @ share, diagonal.mean(), joined]
            old = sums.get(name)
            sums[name] = [a + b for a, b in zip(old, found, strict=True)] if old else found
        count += 1
    if first is None:
        raise ValueError("there is no adapter to merge")
    merged: State = {}
    for name, (weight, total, level, joined) in sums.items():
        ridge = (_RIDGE * level / count).clamp(min=1e-100)  # inputs may all be zero
        weight = weight + count * ridge * torch.eye(len(weight), dtype=weight.dtype)
        # H is symmetric: V H = S is the same as H V^T = S^T.
        solution = torch.linalg.solve(weight, (total + ridge * joined).T).T
        merged |= _part(first, name, solution)
    return merged


def _join(state: State, name: str) -> Tensor:
    """[W b] of a layer, (outputs, inputs + 1), or W where it has no bias; float64."""
    matrix = state[f"{name}.weight"].double().flatten(1)
    bias = state.get(f"{name}.bias")
    return matrix if bias is None else torch.cat([matrix, bias.double()[:, None]], dim=1)


def _part(like: State, name: str, joined: Tensor) -> State:
    """The other way round, with the shapes and types of a state."""
    weight, bias = like[f"{name}.weight"], like.get(f"{name}.bias")
    inputs = weight[0].numel()
    parts = {f"{name}.weight": joined[:, :inputs].reshape(weight.shape).to(weight.dtype)}
    if bias is not None:
        parts[f"{name}.bias"] = joined[:, inputs].to(bias.dtype)
    return parts
