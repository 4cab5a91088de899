"""Diagonal Fisher information and Gram matrices, against other ways of computing them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dynammo.config import AdapterConfig, BackboneConfig, MergeConfig
from dynammo.errors import ConfigError
from dynammo.heads.linear import new_head
from dynammo.merging import MERGE_RULES
from dynammo.merging.measures import check_rule, diagonal_fisher, gram_matrices
from dynammo.network.network import Network, build_network

SIZE = 64


@pytest.fixture
def linear(backbone: BackboneConfig, weights: dict[str, Tensor]) -> Network:
    """Linear adapters that do something."""
    network = build_network(backbone, weights, SIZE, AdapterConfig(name="linear"))
    torch.manual_seed(0)
    for parameter in network.adapter_parameters():
        nn.init.normal_(parameter, std=0.05)
    return network


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_fisher_information_of_one_image(
    backbone: BackboneConfig, weights: dict[str, Tensor], images: Tensor, kind: str
) -> None:
    network = build_network(backbone, weights, SIZE, AdapterConfig(name=kind))
    head = new_head(network.feature_size, 3, seed=0)
    found = diagonal_fisher(network, head, images[:1])
    trained = [n for n in network.adapter_state() if "running" not in n and "batches" not in n]
    assert sorted(found) == sorted(trained)
    # p (d log p)^2 = (d p)^2 / p.
    probabilities = (network(images[:1]) @ head["weight"].T + head["bias"]).softmax(1)[0]
    expected = [torch.zeros_like(p) for p in network.adapter_parameters()]
    for p in probabilities:
        gradients = torch.autograd.grad(p, network.adapter_parameters(), retain_graph=True)
        for total, gradient in zip(expected, gradients, strict=True):
            total += gradient.square() / p.detach()
    assert max(value.max() for value in expected) > 0
    for name, value in zip(found, expected, strict=True):
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-9)


def test_the_fisher_information_is_the_mean_over_images(linear: Network, images: Tensor) -> None:
    head = new_head(linear.feature_size, 3, seed=0)
    single = [diagonal_fisher(linear, head, image) for image in images[:3].split(1)]
    together = diagonal_fisher(linear, head, images[:3])
    for name, value in together.items():
        expected = torch.stack([one[name] for one in single]).mean(0)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-12)


def test_of_many_images_some_are_used_always_the_same(linear: Network, images: Tensor) -> None:
    head = new_head(linear.feature_size, 3, seed=0)
    name = "layer1.mix.weight"
    first = diagonal_fisher(linear, head, images, limit=2)[name]
    assert torch.equal(first, diagonal_fisher(linear, head, images, limit=2)[name])
    pairs = [
        diagonal_fisher(linear, head, images[[i, j]])[name] for i in range(6) for j in range(i)
    ]
    assert sum(torch.allclose(first, pair, rtol=1e-4, atol=0) for pair in pairs) == 1


def test_gram_matrices_of_what_the_adapters_are_given(linear: Network, images: Tensor) -> None:
    seen: dict[str, Tensor] = {}
    handles = [
        stage.register_forward_pre_hook(lambda _, i, at=position: seen.update({at: i[0]}))
        for position, stage in linear.stages().items()
    ]
    linear(images)
    for handle in handles:
        handle.remove()
    found = gram_matrices(linear, images, batch_size=4)
    assert list(found) == [f"{position}.mix" for position in linear.positions]
    for position, x in seen.items():
        rows = torch.cat([x, torch.ones_like(x[:, :1])], 1).permute(0, 2, 3, 1).flatten(0, 2)
        expected = torch.einsum("ni,nj->ij", rows.double(), rows.double()) / len(rows)
        torch.testing.assert_close(found[f"{position}.mix"], expected, rtol=1e-4, atol=1e-5)
        assert found[f"{position}.mix"][-1, -1] == 1
    assert not [hook for m in linear.adapters().values() for hook in m.mix._forward_pre_hooks]


def test_without_bias_there_is_no_1(
    backbone: BackboneConfig, weights: dict[str, Tensor], images: Tensor
) -> None:
    kind = AdapterConfig(name="linear", options={"bias": False})
    found = gram_matrices(build_network(backbone, weights, SIZE, kind), images)
    assert found["layer1.mix"].shape == (64, 64)


def test_gram_matrices_need_linear_maps(network: Network, images: Tensor) -> None:
    message = r"1x1 convolutions only, found layer1 \(ConvAdapter\), layer1\.down \(Conv2d\)"
    with pytest.raises(ConfigError, match=message):
        gram_matrices(network, images)


@pytest.mark.parametrize("rule", MERGE_RULES)
def test_every_rule_can_be_tried_before_training(rule: str, linear: Network) -> None:
    before = linear.adapter_state()
    check_rule(MergeConfig(rule=rule), linear, SIZE)
    assert all(torch.equal(value, before[name]) for name, value in linear.adapter_state().items())


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("ties", {"kep": 0.1}, "merge.options for 'ties': unknown kep; known: keep, scale"),
        ("ties", {"keep": 20}, "merge.options for 'ties': keep must be a number, at least 0 and"),
        ("ema", {"decay": [1]}, r"merge.options for 'ema': decay must be .*, got \[1\]"),
        ("regmean", {}, "merge.rule 'regmean': needs adapters of 1x1 convolutions only"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_before_training(
    rule: str, options: dict[str, object], message: str, network: Network
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_rule(MergeConfig(rule=rule, options=options), network, SIZE)
