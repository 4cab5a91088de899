"""BiC, against values worked out by hand and a search."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from dynammo.methods.base import Task, TaskImages, Watch
from dynammo.methods.bic import corrected, fit_correction, hold_out
from dynammo.network.features import extract_features
from tests.dynammo.methods.tiny import FIRST, SECOND, configured, create, learn, memory


def test_new_logits_alone_are_corrected() -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    assert corrected(logits, 1, torch.tensor([0.5, -1.0])).tolist() == [[1, 0, 1]]


def test_the_correction_is_the_least_of_what_it_minimises() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(40, 4, generator=generator)
    logits[:, 2:] += 2  # leans towards the new classes
    labels = torch.arange(40) % 4

    def value(scale: float, shift: float) -> float:
        moved = corrected(logits, 2, torch.tensor([scale, shift]))
        return float(cross_entropy(moved, labels) + 0.01 * ((scale - 1) ** 2 + shift**2))

    found = fit_correction(logits, labels, 2, 0.01).tolist()
    assert 2 * found[0] + found[1] < 1
    for step in (0.01, -0.01):
        assert value(*found) < value(found[0] + step, found[1])
        assert value(*found) < value(found[0], found[1] + step)


def test_images_that_are_all_told_right_have_a_correction() -> None:
    logits = 9 * torch.eye(4)
    assert bool(fit_correction(logits, torch.arange(4), 2, 0.01).isfinite().all())


def test_as_many_images_of_each_class_are_held_out_the_last_ones() -> None:
    old = memory(4, FIRST)
    trained, held = hold_out(Task(2, 2, 4, SECOND, old), 0.5)
    assert held.labels.bincount().tolist() == [2, 2, 2, 2]
    assert trained.labels.bincount().tolist() == [2, 2, 4, 4]
    assert torch.equal(held.of_class(0), old.of_class(0)[2:])
    assert torch.equal(held.of_class(3), SECOND.of_class(3)[4:])
    _, least = hold_out(Task(2, 2, 4, SECOND, old), 0.01)
    assert least.labels.bincount().tolist() == [1, 1, 1, 1]


def test_it_teaches_and_predicts_as_it_was_corrected_and_goes_on_as_it_was_not() -> None:
    method = create("bic", configured())
    learn(method, 1)
    assert method.correction.tolist() == [1, 0]
    learn(method, 2)
    assert method.corrected_from == 2 and method.correction.tolist() != [1, 0]
    images = FIRST.with_(SECOND).images
    features = extract_features(method.network, images)
    raw = linear(features, **method.head())
    expected = corrected(raw, 2, method.correction)
    probabilities = method.scores(features).probabilities.float()
    torch.testing.assert_close(probabilities, expected.softmax(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.frozen_copy()(images), expected, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(method.logits(images), raw, rtol=1e-3, atol=1e-4)


def test_the_loss_weighs_by_the_share_of_old_classes() -> None:
    still = {"train__network_learning_rate": 1e-12, "train__weight_decay": 0.0}
    method = create("bic", configured(**still))
    learn(method, 1)
    weight = torch.randn(2, method.feature_size, generator=torch.Generator().manual_seed(0))
    method.use_head({"weight": weight, "bias": torch.zeros(2)})
    before = extract_features(method.network, SECOND.images)
    pair = TaskImages(FIRST.images[5:7], FIRST.labels[5:7])  # held out: one of each class
    (epoch,) = method.learn(Task(2, 2, 4, SECOND, pair), Watch())
    kept = [index for index in range(12) if index not in (5, 11)]  # as many of the new ones
    old = linear(before[kept], weight)
    logits = torch.cat([old, torch.zeros(10, 2)], dim=1)
    taught = (old / 2).softmax(1)
    expected = 0.5 * cross_entropy(logits, SECOND.labels[kept])
    expected = expected - 0.5 * (taught * taught.log()).sum(1).mean()
    assert epoch.loss == pytest.approx(expected.item(), rel=1e-4)
