"""Heads of directions: UCIR and PODNet, against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from dynammo.methods.base import Task, TaskImages, Watch
from dynammo.methods.cosine import imprinted, soft_maximum
from dynammo.methods.podnet import moved, nca, recorded
from dynammo.methods.ucir import margin_loss, turned
from dynammo.network.features import extract_features
from tests.dynammo.methods.tiny import FIRST, NOTHING, SECOND, configured, create, learn, memory

STILL = {"train__network_learning_rate": 1e-12, "train__weight_decay": 0.0}
ONE = TaskImages(FIRST.images[:1], FIRST.labels[:1])


def features_of(method: Any, images: Tensor) -> Tensor:
    return extract_features(method.network, images)


def test_a_proxy_that_is_more_similar_counts_for_more() -> None:
    # softmax([ln 3, 0]) = [3/4, 1/4]; a single one is itself.
    found = soft_maximum(torch.tensor([[[math.log(3), 0.0]], [[0.5, 0.5]]]))
    assert found.tolist() == [[pytest.approx(0.75 * math.log(3))], [pytest.approx(0.5)]]


def test_new_proxies_are_where_the_images_are_and_as_long_as_the_old_ones() -> None:
    method = create("ucir", configured())
    method.grow(Task(1, 0, 2, FIRST, NOTHING))
    unit = normalize(features_of(method, FIRST.with_(SECOND).images), dim=1)
    means = normalize(torch.stack([part.mean(0) for part in unit.split(6)]), dim=1)
    torch.testing.assert_close(method.weight.detach(), means[:2])
    method.use_head({"weight": 3 * method.weight.detach(), "scale": torch.tensor(2.0)})
    method.grow(Task(2, 2, 4, SECOND, NOTHING))
    torch.testing.assert_close(method.weight.detach(), 3 * means)
    assert method.scale.item() == 2


def test_several_proxies_are_the_centres_of_clusters() -> None:
    method = create("podnet", configured(method_options__podnet={"proxies": 2}))
    found = imprinted(method.network, FIRST, 2, seed=3).view(2, 2, -1)
    unit = normalize(features_of(method, FIRST.images), dim=1).double().numpy()
    for own, centres in ((unit[:6], found[0]), (unit[6:], found[1])):
        best = KMeans(2, n_init=20, random_state=0).fit(own).inertia_
        distances = ((own[:, None] - centres.double().numpy()) ** 2).sum(2)
        assert distances.min(1).sum() <= 1.5 * best + 1e-9
    assert len(imprinted(method.network, ONE, 5, seed=3)) == 5, "one image, five times"


def test_the_margin_by_hand() -> None:
    cosines = torch.tensor([[0.9, 0.1, 0.2, 0.6, 0.5], [0.0, 1.0, 0.1, 0.2, 0.3]])
    # Of class 0 0.5 - 0.9 + 0.6 and 0.5 - 0.9 + 0.5; class 1 is far above all.
    found = margin_loss(cosines, torch.tensor([0, 1]), 2, margin=0.5, hardest=2)
    assert found.item() == pytest.approx((0.2 + 0.1 + 0 + 0) / 4)
    only = margin_loss(cosines[:, :3], torch.tensor([0, 1]), 2, margin=1.0, hardest=2)
    assert only.item() == pytest.approx((0.3 + 0.1) / 2)
    assert margin_loss(cosines[:0], torch.zeros(0).long(), 2, 0.5, 2).item() == 0


def test_only_turning_counts() -> None:
    before = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert turned(torch.tensor([[5.0, 0.0], [0.0, 1.0]]), before).item() == pytest.approx(0)
    assert turned(torch.tensor([[0.0, 5.0], [0.0, -1.0]]), before).item() == pytest.approx(1.5)


def test_ucir_minimises_what_it_says_and_leaves_old_rows() -> None:
    options = {"strength": 0.0, "margin": 1.5, "hardest": 1, "scale": 3.0}
    method = create("ucir", configured(**STILL, method_options__ucir=options))
    learn(method, 1)
    old = method.weight.detach().clone()
    (epoch,) = method.learn(Task(2, 2, 4, SECOND, ONE), Watch())
    both = SECOND.with_(ONE)
    cosines = cosine_similarity(
        features_of(method, both.images).unsqueeze(1), method.weight.detach(), dim=2
    )
    entropies = cross_entropy(3 * cosines, both.labels, reduction="none")
    # 13 images in batches of 4, the lone last one in the third: the exemplar is in one of them.
    ranking = 1.5 - cosines[-1, 0] + cosines[-1, 2:].max()
    per_image = (epoch.loss - entropies.mean().item()) * 13
    share = min(((per_image / (n * ranking.item())), n) for n in (4, 5))[1]
    assert per_image == pytest.approx(share * ranking.item(), rel=1e-2)
    torch.testing.assert_close(method.weight.detach()[:2], old)
    trained = create("ucir", configured(train__network_learning_rate=0.1))
    learn(trained, 1)
    old = trained.weight.detach().clone()
    learn(trained, 2)
    torch.testing.assert_close(  # weight decay shortens rows and does not turn them
        normalize(trained.weight.detach()[:2], dim=1), normalize(old, dim=1)
    )


def test_the_strength_holds_the_directions_of_features() -> None:
    turns = []
    for strength in (0.0, 30.0):
        options = {"strength": strength, "scale": 20.0}
        changes = {"train__epochs": 3, "train__network_learning_rate": 1e-4}
        method = create("ucir", configured(**changes, method_options__ucir=options))
        learn(method, 1)
        before = features_of(method, SECOND.images)
        learn(method, 2)
        turns.append(turned(features_of(method, SECOND.images), before).item())
    assert turns[1] < 0.7 * turns[0]


def test_nca_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    # ln(e^0 + e^0) - (2 - 1.5); the second is right by more than the margin.
    found = nca(logits, torch.tensor([0, 0]), 1.5)
    assert found.item() == pytest.approx((math.log(2) - 0.5) / 2)
    lone = torch.ones(2, 1, requires_grad=True)
    nca(lone, torch.zeros(2).long(), 1.0).backward()
    assert lone.grad is not None and lone.grad.tolist() == [[0], [0]]


def test_pooled_maps_by_hand() -> None:
    # Sums of squares over rows 4, 0 and over columns 4, 0; then 0, 9 and 0, 9.
    corner = torch.tensor([[[[2.0, 0.0], [0.0, 0.0]]]])
    other = torch.tensor([[[[0.0, 0.0], [0.0, -3.0]]]])
    assert moved([corner, corner], [3 * corner, other]).item() == pytest.approx(
        (0 + math.sqrt(2)) / 2, abs=1e-5
    )
    swapped = torch.tensor([[[[1.0, 2.0], [2.0, 1.0]]]])
    assert moved([swapped], [swapped.flip(3)]).item() == pytest.approx(0, abs=1e-5)


def test_the_maps_of_the_last_stages_are_recorded_until_the_end() -> None:
    method = create("podnet", configured())
    with recorded(method.network) as maps:
        method.network(FIRST.images[:2])
        assert [m.dim() for m in maps] == [4] * len(maps) and len(maps) >= 2
        assert maps[0].shape[2] > maps[-1].shape[2]
    count = len(maps)
    method.network(FIRST.images[:2])
    assert len(maps) == count


def test_podnet_holds_stages_and_balances_its_head_on_exemplars() -> None:
    moves = []
    for strength in (0.0, 30.0):
        options = {"spatial": strength, "flat": 0.0, "balanced": 0, "scale": 20.0}
        changes = {"train__epochs": 3, "train__network_learning_rate": 0.001}
        method = create("podnet", configured(**changes, method_options__podnet=options))
        learn(method, 1)
        with recorded(method.network) as before, torch.no_grad():
            method.network(SECOND.images)
        learn(method, 2)
        with recorded(method.network) as after, torch.no_grad():
            method.network(SECOND.images)
        moves.append(moved(after, before).item())
    assert moves[1] < 0.5 * moves[0]
    method.balanced = 3
    network = {name: value.clone() for name, value in method.network.state_dict().items()}
    kept = memory(2, FIRST, SECOND)

    def loss() -> float:
        logits = method.outputs(features_of(method, kept.images), method.head())
        return float(nca(logits, kept.labels, method.margin * method.scale.item()))

    start = loss()
    method.remember(kept)
    assert 0 < loss() < start
    for name, value in method.network.state_dict().items():
        assert torch.equal(value, network[name]), name


def test_podnet_does_not_balance_after_the_first_task() -> None:
    method = create("podnet", configured())
    method.learn(Task(1, 0, 2, FIRST, NOTHING), Watch())
    head = method.head()
    method.remember(memory(2, FIRST))
    assert all(torch.equal(value, head[name]) for name, value in method.head().items())
