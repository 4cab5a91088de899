"""Fisher-weighted averaging: a number counts where its adapter's predictions depend on it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dynammo.merging.average import running_average
from dynammo.merging.layout import check_same_layout
from dynammo.merging.options import check_number
from dynammo.state import State


def fisher(adapters: Iterable[State], *, fisher: Iterable[State], floor: float = 1e-3) -> State:
    """W = sum_t F_t * w_t / sum_t F_t for every number, with F_t = f_t / mean(f_t) + floor.

    f_t is the diagonal of the Fisher information of adapter t on its task (`diagonal_fisher` in
    `dynammo.merging.measures`). Dividing it by its mean over all numbers gives every adapter the
    same say in all; otherwise one that is less sure of its predictions would outweigh the others.
    The floor makes numbers that no prediction depends on average. BatchNorm buffers
    have no Fisher information: they are merged as `average` does. One adapter is held at a time.

    Args:
        adapters: in any order.
        fisher: f_t of each, in the same order: a state dict of what is trained, all numbers >= 0.
        floor: above 0, in units of the mean of f_t; at large values the rule is `average`.

    Raises:
        ValueError: no adapters, adapters and statistics that do not fit together, or a floor out of
            range.

    Source: arXiv 2111.09832, with lambda_t = 1 / mean(f_t); the size of the floor is
    this project's.
    """
    check_number("floor", floor, 1e-12)
    merged: State | None = None
    weight: dict[str, Tensor] = {}
    total: dict[str, Tensor] = {}
    for count, (adapter, own) in enumerate(zip(adapters, fisher, strict=True), start=1):
        check_same_layout({name: adapter[name] for name in own if name in adapter}, own)
        mean = torch.cat([value.double().flatten() for value in own.values()]).mean()
        for name, value in own.items():
            share = value.double() / mean.clamp(min=torch.finfo(torch.float64).tiny) + floor
            weight[name] = weight[name] + share if name in weight else share
            moved = share * adapter[name].double()
            total[name] = total[name] + moved if name in total else moved
        merged = dict(adapter) if merged is None else running_average(merged, adapter, count)
    if merged is None:
        raise ValueError("there is no adapter to merge")
    best = {name: (total[name] / weight[name]).to(merged[name].dtype) for name in weight}
    return {**merged, **best}
