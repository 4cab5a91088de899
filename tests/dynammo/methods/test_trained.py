"""What sets the methods apart that train the network."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dynammo.config import Config
from dynammo.errors import DynammoError
from dynammo.merging.average import average
from dynammo.methods import METHODS
from dynammo.methods.base import Task, TaskImages, Watch
from dynammo.methods.training import Replay, TrainedNetwork
from dynammo.network.features import extract_features
from dynammo.network.folding import why_not_foldable
from dynammo.network.network import build_network
from tests.dynammo.methods.tiny import (
    FIRST,
    NOTHING,
    SECOND,
    configured,
    create,
    learn,
    memory,
    task,
    weights,
)

# So small a step that the loss of the epoch is the loss before it.
STILL = {
    "train__learning_rate": 1e-12,
    "train__network_learning_rate": 1e-12,
    "train__weight_decay": 0.0,
}
TRAINED = [name for name, kind in METHODS.items() if issubclass(kind, TrainedNetwork)]
# A head of directions cannot start at zero.
LINEAR = [name for name in TRAINED if METHODS[name].grow is TrainedNetwork.grow]
ONE = TaskImages(FIRST.images[:1], FIRST.labels[:1])  # every draw from such a memory is known


def entropy(method: TrainedNetwork, data: TaskImages) -> Tensor:
    """Cross-entropy of each image over all classes seen."""
    with torch.no_grad():
        return functional.cross_entropy(method.logits(data.images), data.labels, reduction="none")


def second(old: TaskImages) -> Task:
    return Task(2, 2, 4, SECOND, old)


def learnt(name: str, config: Config) -> Any:
    """A method after the first task, with a random head: one that stood still says nothing."""
    method = create(name, config)
    method.learn(task(1, method), Watch())
    generator = torch.Generator().manual_seed(0)
    method.use_head(
        {k: torch.randn(v.shape, generator=generator) for k, v in method.head().items()}
    )
    return method


@pytest.mark.parametrize("name", LINEAR)
def test_new_outputs_and_inputs_of_the_head_start_at_zero_and_old_ones_stay(name: str) -> None:
    method = learnt(name, configured())
    head, width = method.head(), method.feature_size
    method.feature_size += 3
    method.grow(second(NOTHING))
    assert torch.equal(method.weight[:2, :width], head["weight"])
    assert torch.equal(method.bias[:2], head["bias"])
    assert not method.weight[2:].any() and not method.weight[:, width:].any()
    assert method.weight.shape == (4, width + 3) and method.bias[2:].tolist() == [0, 0]


@pytest.mark.parametrize("name", LINEAR)
def test_the_first_step_of_a_fresh_head_leaves_the_network_as_it_is(name: str) -> None:
    config = configured(train__batch_size=12, train__weight_decay=0.0)
    method = create(name, config)
    method.learn(task(1, method), Watch())  # 12 images: one step
    learnt_network = getattr(method, "networks", [method.network])[0]
    start = build_network(config.backbone, weights(config), config.image.size)
    for key, value in start.state_dict().items():
        assert torch.equal(learnt_network.state_dict()[key], value), key
    assert method.weight.any()


def test_the_pretrained_network_is_trained_and_its_batchnorm_statistics_are_not() -> None:
    config = configured(train__epochs=2)
    method = create("finetune", config)
    learn(method, 1)
    before, after = weights(config), method.state()
    changed = {
        name for name, value in before.items() if not value.equal(after[f"network.backbone.{name}"])
    }
    assert changed
    assert {name for name in before if "running" in name}
    assert not {name for name in changed if "running" in name or "num_batches" in name}


# The head of fsa is no product of steps but an inverse, in which small differences are large.
@pytest.mark.parametrize("name", [name for name in TRAINED if name != "fsa"])
def test_bfloat16_is_near_float32(name: str) -> None:
    heads = []
    for precision in ("float32", "bfloat16"):
        method = create(name, configured(train__precision=precision))
        for number in (1, 2):
            history = learn(method, number)
            assert all(math.isfinite(epoch.loss) for epoch in history)
        heads.append(method.head()["weight"])
    assert heads[1].dtype == torch.float32 and not torch.equal(*heads)
    assert torch.allclose(*heads, atol=2e-3 * max(1.0, float(heads[0].abs().max())))


def test_the_network_has_a_learning_rate_of_its_own() -> None:
    heads = []
    for change in ({}, {"train__learning_rate": 0.5}, {"train__network_learning_rate": 0.5}):
        method = create("finetune", configured(**change))
        learn(method, 1)
        heads.append(method.weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert not torch.allclose(heads[0], heads[2])
    much = create("finetune", configured(train__network_learning_rate=1e30, train__epochs=2))
    with pytest.raises(DynammoError, match=r"train\.network_learning_rate 1e\+30 is too high"):
        learn(much, 1)


def test_joint_forgets_its_state_and_learns_all_images_at_once() -> None:
    config = configured()
    going_on, fresh = create("joint", config), create("joint", config)
    learn(going_on, 1)
    learn(going_on, 2)
    fresh.learn(task(2, fresh), Watch())
    for name, value in fresh.state().items():
        assert torch.equal(value, going_on.state()[name]), name
    finetune = create("finetune", config)
    learn(finetune, 1)
    first = create("joint", config)
    learn(first, 1)
    for name, value in finetune.state().items():
        assert torch.equal(value, first.state()[name]), name


def test_replay_weighs_old_and_new_batches_equally() -> None:
    method = learnt("er", configured(**STILL))
    (epoch,) = method.learn(second(ONE), Watch())
    expected = (entropy(method, SECOND).mean() + entropy(method, ONE).mean()) / 2
    assert epoch.loss == pytest.approx(expected.item(), rel=1e-4)


def test_replayed_images_are_those_of_the_memory_as_they_are_or_mirrored() -> None:
    config = configured(train__flip=True)
    kept = memory(3, FIRST)
    batch, indices = Replay(create("er", config), kept, seed=1).draw(64)
    assert set(indices.tolist()) == set(range(6))
    assert torch.equal(batch.labels, kept.labels[indices])
    same = (batch.images == kept.images[indices]).flatten(1).all(1)
    mirrored = (batch.images == kept.images[indices].flip(-1)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 0.25 < same.float().mean() < 0.75


def test_dark_replay_adds_the_logits_of_their_time() -> None:
    config = configured(**STILL, method_options__derpp={"alpha": 0.5, "beta": 0.25})
    method = learnt("derpp", config)
    method.remember(ONE)
    kept = method.kept.clone()
    (epoch,) = method.learn(second(ONE), Watch())
    # Nothing has moved, so the logits of the known classes are still those that were kept.
    expected = entropy(method, SECOND).mean() + 0.25 * entropy(method, ONE).mean()
    assert epoch.loss == pytest.approx(expected.item(), rel=1e-4)
    method.kept = kept + 2.0
    (epoch,) = method.learn(second(ONE), Watch())
    assert epoch.loss == pytest.approx(expected.item() + 0.5 * 2.0**2, rel=1e-4)


def test_an_exemplar_keeps_the_logits_that_it_was_chosen_with() -> None:
    method = create("derpp", configured(train__network_learning_rate=0.1))
    learn(method, 1)
    first = method.kept.clone()
    assert first.shape == (6, 2)
    learn(method, 2)  # of 3 exemplars a class 2 are left
    assert method.kept.shape == (8, 4)
    assert torch.equal(method.kept[:4, :2], first[[0, 1, 3, 4]])
    assert bool(method.kept[:4, 2:].isnan().all())
    with torch.no_grad():
        now = method.logits(memory(2, FIRST, SECOND).images)
    torch.testing.assert_close(method.kept[4:], now[4:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(now[:4, :2], first[[0, 1, 3, 4]], atol=1e-5), "nothing was learnt"


def test_learning_without_forgetting_is_told_new_classes_and_taught_old_ones() -> None:
    method = learnt("lwf", configured(**STILL, method_options__lwf={"strength": 0.5}))
    (epoch,) = method.learn(second(NOTHING), Watch())
    with torch.no_grad():
        logits = method.logits(SECOND.images)
    told = functional.cross_entropy(logits[:, 2:], SECOND.labels - 2)
    taught = (logits[:, :2] / 2).softmax(1)  # by itself, as nothing has moved
    expected = told - 0.5 * (taught * taught.log()).sum(1).mean()
    assert epoch.loss == pytest.approx(expected.item(), rel=1e-4)


def test_weight_aligning_weighs_by_the_share_of_old_classes_and_aligns() -> None:
    method = learnt("wa", configured(**STILL))
    (epoch,) = method.learn(second(ONE), Watch())
    # The head was scaled after the epoch: undo it to see what the epoch saw.
    lengths = method.weight.detach().norm(dim=1)
    assert lengths[:2].mean().item() == pytest.approx(lengths[2:].mean().item(), rel=1e-5)
    other = learnt("finetune", configured(**STILL))
    other.learn(second(NOTHING), Watch())  # the same head, not aligned
    both = SECOND.with_(ONE)
    told = entropy(other, both).mean()
    with torch.no_grad():
        taught = (other.logits(both.images)[:, :2] / 2).softmax(1)
    expected = 0.5 * told - 0.5 * (taught * taught.log()).sum(1).mean()
    assert epoch.loss == pytest.approx(expected.item(), rel=1e-4)


def test_the_fisher_information_of_the_head() -> None:
    method = create("ewc", configured(method_options__ewc={"samples": 5}))
    learn(method, 1)
    fisher = method.measure(FIRST, seed=3)
    # d log p_y / d b = onehot(y) - p, and times the features for the weights.
    generator = torch.Generator().manual_seed(3)
    chosen = torch.randperm(12, generator=generator)[:5]
    features = extract_features(method.network, FIRST.images[chosen])
    probabilities = functional.linear(features, **method.head()).softmax(1)
    drawn = [int(torch.multinomial(p, 1, generator=generator)) for p in probabilities]
    error = functional.one_hot(torch.tensor(drawn), 2) - probabilities
    weight = (error.unsqueeze(2) * features.unsqueeze(1)).square().mean(0)
    torch.testing.assert_close(fisher["bias"], error.square().mean(0), rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(fisher["weight"], weight, rtol=1e-3, atol=1e-7)
    assert all(bool((value >= 0).all()) for value in fisher.values())


def test_the_fisher_information_accumulates_and_holds_weights() -> None:
    options = {"samples": 3, "decay": 0.5, "strength": 0.0}
    free = create("ewc", configured(method_options__ewc=options))
    learn(free, 1)
    first = {name: value.clone() for name, value in free.fisher.items()}
    learn(free, 2)
    alone = free.measure(SECOND, free.seed("fisher", 2))
    torch.testing.assert_close(
        free.fisher["weight"][:2], alone["weight"][:2] + 0.5 * first["weight"]
    )
    torch.testing.assert_close(free.fisher["weight"][2:], alone["weight"][2:])
    start = {name: value.clone() for name, value in free._named().items() if name != "weight"}
    assert start
    held = create("ewc", configured(method_options__ewc={**options, "strength": 50.0}))
    learn(held, 1)
    learn(held, 2)
    moved = [
        (first["weight"] * (method.weight[:2] - anchor.weight[:2]).square()).sum().item()
        for method in (free, held)
        for anchor in [_after_first(method)]
    ]
    assert moved[1] < moved[0]


def _after_first(method: TrainedNetwork) -> TrainedNetwork:
    """A method of the same kind after the first task alone."""
    other = create("ewc", method.config)
    learn(other, 1)
    trained: TrainedNetwork = other
    return trained


def test_icarl_predicts_the_nearest_mean_of_exemplars() -> None:
    method = create("icarl", configured())
    learn(method, 1)
    learn(method, 2)
    kept = memory(2, FIRST, SECOND)

    def unit(images: Tensor) -> Tensor:
        return functional.normalize(extract_features(method.network, images), dim=1)

    means = torch.stack([unit(kept.of_class(label)).mean(0) for label in range(4)])
    torch.testing.assert_close(method.means, means)
    images = FIRST.with_(SECOND).images
    nearest = torch.cdist(unit(images), functional.normalize(means, dim=1)).argmin(1)
    features = extract_features(method.network, images)
    assert torch.equal(method.scores(features).predicted, nearest)


def test_icarl_starts_from_yes_or_no() -> None:
    method = create("icarl", configured(**STILL))
    method.weight.data.zero_()
    (epoch,) = method.learn(task(1, method), Watch())
    with torch.no_grad():
        yes = method.logits(FIRST.images).sigmoid()
    right = functional.one_hot(FIRST.labels, 2).bool()
    expected = -(yes.where(right, 1 - yes)).log().sum(1).mean()
    assert epoch.loss == pytest.approx(expected.item(), rel=1e-4)


def test_expansion_leaves_earlier_backbones_as_they_were() -> None:
    method = create("der", configured(train__network_learning_rate=0.1))
    learn(method, 1)
    size = method.single
    old = extract_features(method.network, FIRST.images)
    saved = {name: value.clone() for name, value in method.networks[0].state_dict().items()}
    learn(method, 2)
    now = extract_features(method.network, FIRST.images)
    assert now.shape == (12, 2 * size)
    assert torch.equal(now[:, :size], old)
    for name, value in method.networks[0].state_dict().items():
        assert torch.equal(value, saved[name]), name
    assert not torch.equal(now[:, size:], old), "the new backbone has learnt nothing"
    assert method.weight.shape == (4, 2 * size)
    assert method.head_weights == 4 * 2 * size


def test_expansion_adds_an_auxiliary_loss_over_new_classes_and_one_for_old() -> None:
    method = create("der", configured(**STILL, method_options__der={"auxiliary": 0.0}))
    other = create("der", configured(**STILL, method_options__der={"auxiliary": 1.0}))
    losses = []
    for each in (method, other):
        learn(each, 1)
        losses.append(each.learn(second(ONE), Watch())[0].loss)
    # An untrained classifier of 3 outputs: ln 3.
    assert losses[1] - losses[0] == pytest.approx(math.log(3), rel=1e-4)


def test_acmap_moves_old_means_as_far_as_the_new_images_show() -> None:
    config = configured(train__learning_rate=0.1)
    method = create("acmap", config)
    learn(method, 1)
    source = method.means.clone()
    learn(method, 2)
    network = build_network(config.backbone, weights(config), 32, config.adapter)

    def centroid(count: int) -> Tensor:
        network.load_adapter_state(average(method.adapters[:count]))
        features = extract_features(network, SECOND.images)
        return torch.stack([features[SECOND.labels == label].mean(0) for label in (2, 3)])

    shift = centroid(2).mean(0) - centroid(1).mean(0)
    assert shift.norm() > 1e-6, "merging has changed nothing"
    torch.testing.assert_close(method.means[:2], source + shift, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(method.means[2:], centroid(2), rtol=1e-4, atol=1e-6)


def test_acmap_starts_every_adapter_from_the_first() -> None:
    method = create("acmap", configured())
    learn(method, 1)
    still = create("acmap", configured(**STILL))
    still.load_state(method.state())
    learn(still, 2)
    for name, value in still.adapters[0].items():
        torch.testing.assert_close(still.adapters[1][name], value, rtol=1e-5, atol=1e-8)


def test_acmap_costs_what_the_deployed_network_does() -> None:
    for bias in (False, True):  # with a bias this adapter cannot be folded into a convolution
        config = configured(backbone__positions=["layer2"], adapter__options={"bias": bias})
        method = create("acmap", config)
        assert bool(why_not_foldable(method.adapted)) == bias
        assert bool(method.deployed.adapters()) == bias
