"""CLSNet's closed form, against values worked out by hand and against gradients."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from dynammo.methods.clsnet import consolidate, information
from dynammo.network.features import extract_features
from tests.dynammo.methods.tiny import FIRST, SECOND, configured, create, learn


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_information_by_hand() -> None:
    # Two images; g B = [ln 3, 0] and [0, 0], so p - y = [-1/4, 1/4] and [1/2, -1/2].
    g, targets = rows([1.0, 2.0], [0.0, 4.0]), rows([1.0, 0.0], [0.0, 1.0])
    head = rows([math.log(3), 0.0], [0.0, 0.0])
    # d CE / d B = [[-1/4, 1/4], [-2/4 + 4/2, 2/4 - 4/2]] / 2
    expected = 2 * rows([1 / 64, 1 / 64], [9 / 16, 9 / 16])
    torch.testing.assert_close(information(g, targets, head), expected)
    moved = head.clone().requires_grad_(True)
    functional.cross_entropy(g @ moved, targets).backward()
    assert moved.grad is not None
    torch.testing.assert_close(information(g, targets, head), 2 * moved.grad.square())


def test_a_task_after_the_first_by_hand() -> None:
    # One unit, two images with g = 1 and 2: g^T g = 5.
    g, targets = rows([1.0], [2.0]), rows([1.0, 0.0], [1.0, 0.0])
    head = consolidate(g, targets, rows([4.0, 0.0]), rows([4.0 * 0.5, 0.0]), rows([1.0, 3.0]))
    # (1 + 2 + 4 * 0.5 + 1) / (5 + 4 + 1) and (0 + 0 + 3) / (5 + 0 + 1)
    torch.testing.assert_close(head, rows([0.6, 0.5]))


def test_what_is_solved_is_the_least_of_the_sum() -> None:
    generator = torch.Generator().manual_seed(1)
    g, targets = (torch.randn(6, n, generator=generator, dtype=torch.float64) for n in (4, 2))
    fisher, alone, head = torch.rand(3, 4, 2, generator=generator, dtype=torch.float64)
    found = consolidate(g, targets, fisher, fisher * alone, head).requires_grad_(True)
    fit = (g @ found - targets).square().sum() + (found - head).square().sum()
    (fit + (fisher * (found - alone).square()).sum()).backward()
    assert found.grad is not None
    torch.testing.assert_close(found.grad, torch.zeros_like(found), atol=1e-9, rtol=0)


def test_tasks_one_after_the_other() -> None:
    method = create("clsnet", configured(method_options__clsnet={"hidden": 30, "strength": 7.0}))
    learn(method, 1)
    g = [method.hidden(extract_features(method.network, part.images)) for part in (FIRST, SECOND)]
    one = functional.one_hot(FIRST.labels, 2).double()
    first = torch.linalg.lstsq(g[0], one, driver="gelsd").solution
    # Features of other batches round differently, and least squares magnify it.
    torch.testing.assert_close(g[0] @ method.head, g[0] @ first, rtol=1e-3, atol=1e-3)
    held, before = 7 * information(g[0], one, method.head), method.head
    torch.testing.assert_close(method.fisher, held)
    learn(method, 2)
    two = functional.one_hot(SECOND.labels, 4).double()
    padded = [functional.pad(known, (0, 2)) for known in (held, held * before, before)]
    torch.testing.assert_close(method.head, consolidate(g[1], two, *padded))
    assert not method.fisher[:, 2:].equal(padded[0][:, 2:]) and method.fisher.shape == (30, 4)


def test_forgetting_is_what_the_strength_holds() -> None:
    """Without it the second task pulls old outputs to 0, for its images have none of them."""
    left = []
    for strength in (0.0, 1e9):
        options = {"hidden": 30, "strength": strength}
        method = create("clsnet", configured(method_options__clsnet=options))
        learn(method, 1)
        before = method.head
        learn(method, 2)
        left.append(float((method.head[:, :2] - before).norm() / before.norm()))
    assert left[1] < 0.5 * left[0]
