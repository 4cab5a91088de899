"""The von Mises-Fisher head of DFLM, against closed forms, scipy and integrals."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import ive
from torch.nn.functional import normalize

from dynammo.methods.base import Task, Watch
from dynammo.methods.dflm import log_constant, mean_length, mismatch, overlap, partner_weights
from dynammo.network.features import extract_features
from tests.dynammo.methods.tiny import FIRST, NOTHING, SECOND, configured, create, learn, memory

KAPPAS = torch.tensor([0.5, 3.0, 16.0, 40.0, 300.0], dtype=torch.float64)


def test_the_constant_in_three_dimensions() -> None:
    """log C(k) = log(k / (4 pi sinh k))."""
    expected = (KAPPAS / KAPPAS.sinh()).log() - math.log(16 / math.sinh(16))
    torch.testing.assert_close(log_constant(KAPPAS, 3), expected)


@pytest.mark.parametrize("dimensions", [2, 40, 100])
def test_the_constant_is_scipys_where_scipy_has_one(dimensions: int) -> None:
    v = dimensions / 2 - 1
    kappa = torch.tensor([10.0, 16.0, 90.0], dtype=torch.float64)
    logs = [v * math.log(k) - math.log(ive(v, k)) - k for k in (10.0, 16.0, 90.0)]
    expected = torch.tensor(logs, dtype=torch.float64) - logs[1]
    torch.testing.assert_close(log_constant(kappa, dimensions), expected)
    ratio = [ive(v + 1, k) / ive(v, k) for k in (10.0, 16.0, 90.0)]
    torch.testing.assert_close(
        mean_length(kappa, dimensions), torch.tensor(ratio, dtype=torch.float64)
    )


@pytest.mark.parametrize("dimensions", [3, 512, 5120])
def test_the_gradient_of_the_constant_is_the_mean_length(dimensions: int) -> None:
    kappa = KAPPAS.clone().requires_grad_(True)
    log_constant(kappa, dimensions).sum().backward()
    assert kappa.grad is not None
    length = mean_length(KAPPAS, dimensions)
    torch.testing.assert_close(-kappa.grad, length)
    # A' = 1 - (d - 1) / k A - A^2
    kappa = KAPPAS.clone().requires_grad_(True)
    mean_length(kappa, dimensions).sum().backward()
    assert kappa.grad is not None
    expected = 1 - (dimensions - 1) / KAPPAS * length - length.square()
    torch.testing.assert_close(kappa.grad, expected, rtol=1e-5, atol=1e-9)


def test_classes_of_one_concentration_are_told_by_the_cosine() -> None:
    method = create("dflm", configured())
    method.grow(Task(1, 0, 2, FIRST, NOTHING))
    features = extract_features(method.network, FIRST.images)
    cosines = normalize(features, dim=1) @ normalize(method.weight.detach(), dim=1).T
    found = method.scores(features).probabilities
    torch.testing.assert_close(found.float(), (16 * cosines).softmax(1), rtol=1e-4, atol=1e-5)


def test_a_head_that_agrees_with_its_features_has_no_mismatch() -> None:
    z = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.6, -0.8, 0.0]])
    labels, kappa = torch.tensor([1, 0, 0]), torch.tensor([2.0, 5.0])
    agrees = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert mismatch(z, labels, agrees, kappa).item() == pytest.approx(0, abs=1e-6)
    across = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    # In three dimensions A(2) = coth 2 - 1/2; the other class agrees.
    far = 1 - 1 / (1 + (1 / math.tanh(2) - 0.5) * 2)
    assert mismatch(z, labels, across, kappa).item() == pytest.approx(far / 2, rel=1e-5)


def test_the_overlap_is_that_of_the_divergence() -> None:
    same = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert overlap(same, torch.tensor([4.0, 4.0])).item() == pytest.approx(1, rel=1e-5)
    # On a circle the divergence is an integral that can be summed up.
    turns = torch.arange(20000, dtype=torch.float64) * 2 * math.pi / 20000
    centres, kappa = (0.0, 1.2), torch.tensor([3.0, 7.0], dtype=torch.float64)
    shapes = [k * (turns - centre).cos() for k, centre in zip(kappa, centres, strict=True)]
    logs = [shape - shape.logsumexp(0) for shape in shapes]
    kl = [(logs[i].exp() * (logs[i] - logs[1 - i])).sum() for i in (0, 1)]
    expected = sum(1 / (1 + float(value)) for value in kl) / 2
    directions = torch.tensor([[math.cos(c), math.sin(c)] for c in centres], dtype=torch.float64)
    assert overlap(directions, kappa).item() == pytest.approx(expected, rel=1e-6)
    assert overlap(same[:1], torch.tensor([4.0])).item() == 0


def test_partners_come_ever_more_from_the_memory() -> None:
    labels, counts = torch.tensor([0, 1, 1, 1, 1]), torch.tensor([1, 4])
    assert partner_weights(labels, counts, 0.0).tolist() == [1] * 5
    assert partner_weights(labels, counts, 1.0).tolist() == [1, 0.25, 0.25, 0.25, 0.25]
    assert partner_weights(labels, counts, 0.5).tolist() == [1, 0.5, 0.5, 0.5, 0.5]


def test_a_new_backbone_is_read_by_old_classes_as_the_last_was() -> None:
    method = create("dflm", configured())
    learn(method, 1)
    width = method.feature_size
    before = method.scores(extract_features(method.network, FIRST.images))
    method.expand(Task(2, 2, 4, SECOND, memory(3, FIRST)))
    assert method.weight.shape == (4, 2 * width)
    assert torch.equal(method.weight[:2, :width], method.weight[:2, width:])
    cosines = (
        normalize(extract_features(method.network, FIRST.images), dim=1)
        @ normalize(method.weight.detach()[:2], dim=1).T
    )
    assert torch.equal(cosines.argmax(1), before.predicted)
    assert method.kappa[2:].tolist() == [16, 16]


def test_mixing_can_be_left_out() -> None:
    """Without mixing, matching and auxiliary loss a step is that of the cross-entropy with n_c."""
    options = {"mixed": 0.0, "matching": 0.0, "auxiliary": 0.0}
    still = {"train__network_learning_rate": 1e-12, "train__weight_decay": 0.0}
    method = create("dflm", configured(**still, method_options__dflm=options))
    method.learn(Task(1, 0, 2, FIRST, NOTHING), Watch())
    (epoch,) = method.learn(Task(2, 2, 4, SECOND, memory(3, FIRST)), Watch())
    both = SECOND.with_(memory(3, FIRST))
    features = extract_features(method.network, both.images)
    logits = method.outputs(features, method.head()) + torch.tensor([3.0, 3, 6, 6]).log()
    expected = torch.nn.functional.cross_entropy(logits, both.labels)
    assert epoch.loss == pytest.approx(expected.item(), rel=1e-3)
    mixed = create("dflm", configured(**still, method_options__dflm={**options, "mixed": 1.0}))
    mixed.learn(Task(1, 0, 2, FIRST, NOTHING), Watch())
    assert mixed.learn(Task(2, 2, 4, SECOND, memory(3, FIRST)), Watch())[0].loss != epoch.loss
