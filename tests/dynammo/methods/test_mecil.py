"""MECIL: pairs, and a memory that is counted in bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import one_hot

from dynammo.memory.herding import herd
from dynammo.methods.base import Task, Watch
from dynammo.network.features import extract_features
from tests.dynammo.methods.tiny import FIRST, NOTHING, SECOND, configured, create

BUDGET = {"memory__size": 4, "method_options__mecil": {"reduction": 4.0}}


def learnt(tasks: int, **changes: Any) -> Any:
    method = create("mecil", configured(**BUDGET, **changes))
    method.learn(Task(1, 0, 2, FIRST, NOTHING), Watch())
    if tasks == 2:
        method.learn(Task(2, 2, 4, SECOND, NOTHING), Watch())
    return method


@pytest.mark.parametrize("size", [40, 41, 64])
@pytest.mark.parametrize("reduction", [1.0, 2.0, 3.0, 7.3])
def test_the_memory_holds_as_many_as_its_bytes_do(size: int, reduction: float) -> None:
    changes = {"memory__size": size, "method_options__mecil": {"reduction": reduction}}
    method = create("mecil", configured(**changes))
    for classes in (2, 3, 8):
        one, bytes_ = 3 * method.side**2, size // classes * 3 * 32**2
        assert method.share(classes) * one <= bytes_ < (method.share(classes) + 1) * one
    assert 32**2 / method.side**2 >= reduction


def test_pictures_lose_pixels_once() -> None:
    method = learnt(1)
    flat = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
    assert method.low(flat).shape == (1, 3, 16, 16)
    assert torch.equal(method.shown(method.low(flat)), flat)
    images = FIRST.images[:3]
    mirrored = method.shown(method.low(images.flip(3))).flip(3)
    assert (mirrored.int() - method.shown(method.low(images)).int()).abs().max() <= 1


def test_old_classes_are_cut_to_their_share_the_best_first() -> None:
    method = learnt(1)
    # 2 images a class are 8 of a quarter; there are 6.
    assert method.labels.bincount().tolist() == [6, 6]
    first = method.kept.clone()
    features = extract_features(method.network, method.shown(method.low(FIRST.of_class(1))))
    order = herd(features, 6)
    assert torch.equal(first[6:], method.low(FIRST.of_class(1))[order])
    method.learn(Task(2, 2, 4, SECOND, NOTHING), Watch())
    assert method.labels.bincount().tolist() == [4, 4, 4, 4]
    assert torch.equal(method.kept[:8], first[[0, 1, 2, 3, 6, 7, 8, 9]])
    assert method.state()["kept"].numel() <= 4 * 3 * 32**2


def test_it_is_trained_on_pairs() -> None:
    still = {"train__network_learning_rate": 1e-12, "train__weight_decay": 0.0}
    method = create("mecil", configured(**BUDGET, **still))
    (epoch,) = method.learn(Task(1, 0, 2, FIRST, NOTHING), Watch())
    weight = torch.randn(2, method.feature_size, generator=torch.Generator().manual_seed(0))
    method.use_head({"weight": weight, "bias": torch.zeros(2)})
    assert epoch.loss == pytest.approx(2 * torch.tensor(2.0).log().item(), rel=1e-4)
    old = method.shown(method.kept)
    (epoch,) = method.learn(Task(2, 2, 4, SECOND, NOTHING), Watch())
    twins = method.shown(method.low(SECOND.images))

    def cost(images: torch.Tensor) -> torch.Tensor:
        """Of each image: old outputs are their own truth, new ones are at 0."""
        said = (extract_features(method.network, images) @ weight.T).sigmoid()
        known = -(said * said.log() + (1 - said) * (1 - said).log()).sum(1)
        return known + 2 * torch.tensor(2.0).log()

    pairs = [cost(SECOND.images), cost(twins), cost(old), cost(old)]
    expected = torch.cat(pairs).mean()
    assert epoch.loss == pytest.approx(expected.item(), rel=1e-3)


def test_the_head_is_adapted_to_the_true_labels_of_all_classes() -> None:
    plain, adapted = (
        learnt(2, head__epochs=epochs, head__learning_rate=0.01) for epochs in (1, 30)
    )
    images, labels = adapted.shown(adapted.kept), adapted.labels
    for name, value in plain.network.state_dict().items():
        assert torch.equal(value, adapted.network.state_dict()[name]), name
    costs = []
    for method in (plain, adapted):
        with torch.no_grad():
            yes = method.logits(images).sigmoid()
        right = one_hot(labels, 4).bool()
        costs.append(float(-yes.where(right, 1 - yes).log().sum(1).mean()))
    assert costs[1] < 0.9 * costs[0]
