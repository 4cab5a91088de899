"""The terms of the papers' losses, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import Parameter

from dynammo.methods.derpp import logit_error
from dynammo.methods.ewc import penalty
from dynammo.methods.icarl import yes_or_no
from dynammo.methods.training import distillation
from dynammo.methods.wa import align


def test_distillation_of_equal_logits_is_the_entropy() -> None:
    # softmax([2 ln 3, 0] / 2) = [3/4, 1/4].
    logits = torch.tensor([[2 * math.log(3), 0.0]])
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert distillation(logits, logits, 2.0).item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_gradient_of_distillation(temperature: float) -> None:
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    distillation(student, teacher, temperature).backward()
    difference = (student / temperature).softmax(1) - (teacher / temperature).softmax(1)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, difference.detach() / (temperature * 5))


def test_logits_are_compared_where_the_class_was_known() -> None:
    now = torch.tensor([[1.0, 2.0, 9.0], [0.0, 0.0, 9.0]])
    kept = torch.tensor([[3.0, torch.nan], [1.0, 3.0]])
    # (1 - 3)^2, (0 - 1)^2, (0 - 3)^2; the third class is newer than both.
    assert logit_error(now, kept).item() == pytest.approx((4 + 1 + 9) / 3)


def test_old_outputs_are_taught_and_new_ones_told() -> None:
    logits = torch.tensor([[0.0, 0.0, math.log(3)], [0.0, 0.0, 0.0]])
    old = torch.tensor([[0.25], [1.0]])
    # Each sigmoid(0) costs ln 2 whatever the target; sigmoid(ln 3) = 3/4 costs -ln 3/4 for yes.
    expected = (2 * math.log(2) - math.log(0.75) + 3 * math.log(2)) / 2
    value = yes_or_no(logits, torch.tensor([2, 1]), old)
    assert value.item() == pytest.approx(expected)
    # The teacher's word counts for the old class, whatever the label says.
    sure = torch.tensor([[math.log(3), 0.0]])
    said = yes_or_no(sure, torch.tensor([0]), torch.tensor([[0.0]])).item()
    assert said == pytest.approx(-math.log(0.25) + math.log(2))


def test_the_penalty_is_zero_where_the_weights_were_and_counts_no_new_rows() -> None:
    anchor = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([0.5])}
    fisher = {"weight": torch.tensor([[4.0, 0.0]]), "bias": torch.tensor([2.0])}
    grown = {
        "weight": Parameter(torch.tensor([[1.0, 2.0], [9.0, 9.0]])),
        "bias": Parameter(torch.tensor([0.5, 9.0])),
    }
    assert penalty(grown, anchor, fisher).item() == 0
    moved = {
        "weight": Parameter(torch.tensor([[4.0, 7.0], [9.0, 9.0]])),
        "bias": Parameter(torch.tensor([0.0, 9.0])),
    }
    value = penalty(moved, anchor, fisher)
    assert value.item() == 4 * 3**2 + 0 * 5**2 + 2 * 0.5**2
    value.backward()
    assert moved["weight"].grad is not None
    assert moved["weight"].grad.tolist() == [[2 * 4 * 3, 0], [0, 0]]


def test_the_penalty_takes_weights_without_rows() -> None:
    one, three = torch.tensor(1.0), Parameter(torch.tensor(3.0))
    assert penalty({"scale": three}, {"scale": one}, {"scale": 5 * one}).item() == 5 * 2**2


def test_new_weights_become_as_long_as_old_ones() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 10.0], [2.0, 0.0]])
    # Mean lengths 3 and 6.
    expected = [[3, 4], [0, 1], [0, 5], [1, 0]]
    assert align(weight, 2).tolist() == expected
