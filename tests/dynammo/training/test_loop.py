import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from dynammo.config import AdapterConfig, BackboneConfig, HeadConfig, TrainConfig
from dynammo.errors import DynammoError
from dynammo.heads.linear import Scores, fine_tune_head, new_head, unified_scores
from dynammo.network.backbones import pretrained_weights
from dynammo.network.features import augmented_views, extract_features
from dynammo.network.network import Network, build_network
from dynammo.training.earlier import Earlier, GaussianReplay, feature_distance
from dynammo.training.loop import Epoch, fit, train_adapter

TINY = BackboneConfig(name="test_resnet", pretrained=False)
SIZE = 64
QUICK = TrainConfig(epochs=2, batch_size=6, learning_rate=0.05, milestones=[])
# Plain gradient descent on all images at once.
PLAIN = TrainConfig(
    epochs=1, batch_size=64, momentum=0, weight_decay=0, learning_rate=0.05, flip=False
)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return pretrained_weights(TINY, seed=0)


@pytest.fixture
def network(weights: dict[str, Tensor]) -> Network:
    return fresh(weights)


def fresh(weights: dict[str, Tensor], seed: int = 0) -> Network:
    return build_network(TINY, weights, SIZE, AdapterConfig(), seed)


def task(count: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Red, green and blue noise: two classes and "others"."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 100, (count, 3, SIZE, SIZE), generator=generator)
    labels = torch.arange(count) % 3
    images[torch.arange(count), labels] += 150
    return images.to(torch.uint8), labels


def frozen_part(network: Network) -> dict[str, Tensor]:
    state = network.backbone.state_dict()
    return {name: value.clone() for name, value in state.items() if ".adapter." not in name}


def test_only_the_adapter_changes(network: Network) -> None:
    frozen, adapter = frozen_part(network), network.adapter_state()
    assert any("running_mean" in name for name in frozen)
    trained = train_adapter(network, *task(), 2, QUICK, seed=0)
    for name, value in frozen_part(network).items():
        assert torch.equal(value, frozen[name]), name
    assert trained.adapter.keys() == adapter.keys()
    for name, value in trained.adapter.items():
        assert not torch.equal(value, adapter[name]), name
    # 2 epochs of 2 batches
    assert trained.adapter["layer1.down_norm.num_batches_tracked"] == 4


def test_the_temporary_head_has_one_output_for_others(network: Network) -> None:
    head = train_adapter(network, *task(), 2, QUICK, seed=3).head
    assert head["weight"].shape == (3, network.feature_size)
    assert not head["weight"].requires_grad
    for name, value in new_head(network.feature_size, 3, seed=3).items():
        assert not torch.equal(head[name], value)  # it was trained, too


def test_the_network_is_left_with_the_adapter_in_eval_mode(network: Network) -> None:
    trained = train_adapter(network, *task(), 2, QUICK, seed=0)
    assert not any(module.training for module in network.modules())
    for name, value in network.adapter_state().items():
        assert torch.equal(value, trained.adapter[name])


def test_a_separable_task_is_learnt(network: Network) -> None:
    config = QUICK.model_copy(update={"epochs": 24, "learning_rate": 0.02})
    trained = train_adapter(network, *task(), 2, config, seed=0)
    assert trained.history[-1].loss < trained.history[0].loss / 2
    assert trained.history[-1].accuracy == 1.0
    unseen, truth = task(seed=1)
    with torch.no_grad():
        logits = linear(network(unseen), trained.head["weight"], trained.head["bias"])
    assert (logits.argmax(1) == truth).float().mean() >= 0.9


def test_training_depends_on_the_seed_alone(weights: dict[str, Tensor]) -> None:
    first, again, other = (
        train_adapter(fresh(weights), *task(), 2, QUICK, seed=seed) for seed in (1, 1, 2)
    )
    assert first.history == again.history != other.history
    for name, value in first.adapter.items():
        assert torch.equal(value, again.adapter[name]), name
    assert torch.equal(first.head["weight"], again.head["weight"])
    assert not torch.equal(first.adapter["layer4.up.weight"], other.adapter["layer4.up.weight"])
    assert not torch.equal(first.head["weight"], other.head["weight"])


def test_training_starts_from_the_adapter_that_is_there(weights: dict[str, Tensor]) -> None:
    """With next to no learning rate, what comes out is what went in."""
    network, config = fresh(weights, seed=1), PLAIN.model_copy(update={"learning_rate": 1e-12})
    previous = fresh(weights, seed=2).adapter_state()
    network.load_adapter_state(previous)
    trained = train_adapter(network, *task(), 2, config, seed=0)
    for name, parameter in dict(network.named_parameters()).items():
        if parameter.requires_grad:
            own = name.removeprefix("backbone.").replace(".adapter.", ".")
            torch.testing.assert_close(trained.adapter[own], previous[own], rtol=1e-6, atol=1e-7)


def by_hand(network: Network, images: Tensor, labels: Tensor, seed: int) -> tuple[Epoch, Tensor]:
    """Loss and accuracy before the first step, and the gradient of the head's bias."""
    head = new_head(network.feature_size, 3, seed)
    bias = head["bias"].requires_grad_()
    logits = linear(network.train()(images), head["weight"], bias)
    loss = cross_entropy(logits, labels)
    (gradient,) = torch.autograd.grad(loss, bias)
    return Epoch(loss.item(), (logits.argmax(1) == labels).float().mean().item()), gradient


def test_the_first_step_by_hand(weights: dict[str, Tensor]) -> None:
    network = fresh(weights)
    means, gradient = by_hand(fresh(weights), *task(), seed=5)
    trained = train_adapter(network, *task(), 2, PLAIN, seed=5)
    assert trained.history == [pytest.approx(means, rel=1e-4)]
    # One epoch: no milestone is reached before its end, so the learning rate is the full 0.05.
    expected = new_head(network.feature_size, 3, seed=5)["bias"] - 0.05 * gradient
    torch.testing.assert_close(trained.head["bias"], expected)


def test_the_learning_rate_drops_tenfold_at_a_milestone(weights: dict[str, Tensor]) -> None:
    """The same first epoch; then a step in the same direction, a tenth as long."""

    def bias_after(epochs: int, milestones: list[float]) -> Tensor:
        config = PLAIN.model_copy(update={"epochs": epochs, "milestones": milestones})
        return train_adapter(fresh(weights), *task(), 2, config, seed=0).head["bias"]

    first = bias_after(1, [])
    step, short = bias_after(2, []) - first, bias_after(2, [0.5]) - first
    assert step.abs().max() > 1e-4
    torch.testing.assert_close(short, step / 10, rtol=1e-2, atol=1e-6)


def test_each_epoch_is_told(network: Network) -> None:
    told: list[tuple[int, Epoch]] = []
    trained = train_adapter(
        network, *task(), 2, QUICK, seed=0, on_epoch=lambda *event: told.append(event)
    )
    assert told == [(1, trained.history[0]), (2, trained.history[1])]
    for means in trained.history:
        assert means.loss > 0
        assert 12 * means.accuracy == pytest.approx(round(12 * means.accuracy))  # of 12 images


@pytest.mark.parametrize(
    ("images", "batch_size", "batches"),
    [(4, 4, 1), (6, 4, 2), (8, 4, 2), (5, 4, 1), (9, 4, 2), (2, 4, 1)],
    # A lone last image joins the batch before it: BatchNorm cannot normalise one.
)
def test_progress(network: Network, images: int, batch_size: int, batches: int) -> None:
    seen: list[tuple[int, int]] = []
    train_adapter(
        network,
        *task(images),
        2,
        QUICK.model_copy(update={"batch_size": batch_size}),
        seed=0,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 2 * batches) for done in range(1, 2 * batches + 1)]


def test_flips_are_horizontal(weights: dict[str, Tensor]) -> None:
    images, labels = task()
    flipped = PLAIN.model_copy(update={"flip": True})

    def differs(inputs: Tensor) -> bool:
        plain = train_adapter(fresh(weights), inputs, labels, 2, PLAIN, seed=0)
        mirrored = train_adapter(fresh(weights), inputs, labels, 2, flipped, seed=0)
        return any(not torch.equal(plain.adapter[k], mirrored.adapter[k]) for k in plain.adapter)

    assert differs(images)
    assert not differs(torch.maximum(images, images.flip(-1)))  # symmetrical, left to right


def test_frozen_layers_run_once_or_every_time_makes_no_difference(
    weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    once = train_adapter(fresh(weights), *task(), 2, QUICK, seed=0)
    from_a_file = QUICK.model_copy(update={"cache_mb": 0})
    spilled = train_adapter(fresh(weights), *task(), 2, from_a_file, seed=0)
    monkeypatch.setattr(
        "dynammo.training.loop.split_at_first_adapter", lambda network: (nn.Identity(), network)
    )
    monkeypatch.setattr("dynammo.training.loop.without_frozen_norms", lambda network: network)
    plain = train_adapter(fresh(weights), *task(), 2, QUICK, seed=0)
    for name, value in once.adapter.items():
        assert torch.equal(value, spilled.adapter[name]), name
        torch.testing.assert_close(value, plain.adapter[name], atol=1e-4, rtol=1e-3)
    for mine, other in zip(once.history, plain.history, strict=True):
        assert mine == pytest.approx(other, abs=1e-4)


def test_brightness_changes_training_and_next_to_none_changes_nothing(
    weights: dict[str, Tensor],
) -> None:
    def trained(brightness: float, seed: int = 0) -> dict[str, Tensor]:
        config = QUICK.model_copy(update={"brightness": brightness})
        return train_adapter(fresh(weights), *task(), 2, config, seed=seed).adapter

    plain, next_to_none, lit, again = trained(0), trained(1e-7), trained(0.3), trained(0.3)
    for name, value in plain.items():
        torch.testing.assert_close(next_to_none[name], value, atol=1e-4, rtol=1e-3)
        assert torch.equal(lit[name], again[name])
    assert any(not torch.allclose(lit[name], value, atol=1e-3) for name, value in plain.items())


def test_metrics_with_and_without_caches_are_the_same(
    weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapter, balanced fine-tuning, prediction: everything computed anew in every epoch learns a
    classifier with the same answers, and probabilities within 1e-5.
    """
    config = QUICK.model_copy(update={"epochs": 6, "learning_rate": 0.02})
    head = HeadConfig(epochs=30, learning_rate=0.03, batch_size=5)
    images, labels = task()
    unseen, truth = task(30, seed=1)

    class Anew:
        """Indexed as features (V, N, D) are; the network runs on what is asked for."""

        shape = (2, len(images), 0)

        def __init__(self, network: Network) -> None:
            self.network = network

        @torch.no_grad()
        def __getitem__(self, key: tuple[Tensor, Tensor]) -> Tensor:
            return self.network(torch.stack([images, images.flip(-1)])[key])

    def learn(cached: bool) -> Scores:
        network = fresh(weights)
        train_adapter(network, images, labels, 2, config, seed=0)
        features = augmented_views(network, images, flip=True) if cached else Anew(network)
        initial = new_head(network.feature_size, 3, seed=0)
        state = fine_tune_head(features, labels, initial, head, seed=0)
        return unified_scores(extract_features(network, unseen), state)

    kept = learn(cached=True)
    monkeypatch.setattr(
        "dynammo.training.loop.split_at_first_adapter", lambda network: (nn.Identity(), network)
    )
    monkeypatch.setattr("dynammo.training.loop.without_frozen_norms", lambda network: network)
    anew = learn(cached=False)
    torch.testing.assert_close(kept.probabilities, anew.probabilities, atol=1e-5, rtol=0)
    assert torch.equal(kept.predicted, anew.predicted)
    assert (kept.predicted == truth).double().mean() > 0.8  # something was learnt


def test_bfloat16_rounds_the_passes_and_not_the_parameters(weights: dict[str, Tensor]) -> None:
    exact, rounded = (
        train_adapter(fresh(weights), *task(), 2, PLAIN.model_copy(update={"precision": p}), seed=0)
        for p in ("float32", "bfloat16")
    )
    # bfloat16 keeps 8 bits; the loss of one step, mean over 12 images
    assert rounded.history[0].loss == pytest.approx(exact.history[0].loss, rel=2**-6)
    assert rounded.history[0].loss != exact.history[0].loss
    for name, value in rounded.adapter.items():
        assert value.dtype == exact.adapter[name].dtype
        if value.is_floating_point():
            assert torch.allclose(value, exact.adapter[name], atol=1e-3), name


def test_the_images_are_left_as_they_were(network: Network) -> None:
    images, labels = task()
    train_adapter(network, images, labels, 2, QUICK, seed=0)
    assert torch.equal(images, task()[0]) and torch.equal(labels, task()[1])


def test_one_image_is_too_few(network: Network) -> None:
    with pytest.raises(DynammoError, match="at least 2 images, got 1"):
        train_adapter(network, *task(1), 2, QUICK, seed=0)


def test_a_loss_that_explodes_is_an_error(network: Network) -> None:
    config = QUICK.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(DynammoError, match=r"the loss is .* train\.learning_rate 1e\+30 is too"):
        train_adapter(network, *task(), 2, config, seed=0)


def test_a_weight_that_explodes_in_the_very_last_step_is_an_error() -> None:
    weight = nn.Parameter(torch.zeros(1))
    config = QUICK.model_copy(update={"learning_rate": 1e36, "epochs": 1, "batch_size": 4})

    def loss(batch: Tensor, _view: Tensor) -> tuple[Tensor, int]:
        return (1000 * weight).sum(), len(batch)  # 0; the step is -1e39, more than float32 holds

    with pytest.raises(DynammoError, match=r"weights are infinite or NaN in epoch 1: train\.learn"):
        fit([weight], loss, 4, config, seed=0)


ADAM = QUICK.model_copy(
    update={"optimiser": "adamw", "learning_rate": 0.01, "epochs": 12, "label_smoothing": 0.1}
)


def test_adamw_learns_a_separable_task_and_its_head_takes_features_as_they_are(
    network: Network,
) -> None:
    trained = train_adapter(network, *task(), 2, ADAM, seed=0)
    unseen, truth = task(seed=1)
    with torch.no_grad():
        logits = linear(network(unseen), trained.head["weight"], trained.head["bias"])
    assert (logits.argmax(1) == truth).float().mean() >= 0.9


def test_adamw_takes_the_same_steps_whatever_the_size_of_features(
    weights: dict[str, Tensor],
) -> None:
    config = ADAM.model_copy(update={"epochs": 1, "weight_decay": 0.0})
    trained = train_adapter(fresh(weights), *task(), 2, config, seed=0)

    class Louder(Network):
        def forward(self, images: Tensor) -> Tensor:
            return 1000 * super().forward(images)

    louder = fresh(weights)
    louder.__class__ = Louder
    again = train_adapter(louder, *task(), 2, config, seed=0)
    for one, other in zip(trained.history, again.history, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-3)


def test_features_are_held_where_the_earlier_network_has_them(weights: dict[str, Tensor]) -> None:
    images, labels = task()
    before = extract_features(fresh(weights), images)

    def moved(distil: float) -> float:
        network = fresh(weights)
        config = ADAM.model_copy(update={"distil": distil})
        train_adapter(network, images, labels, 2, config, 0, earlier=Earlier(fresh(weights)))
        return float(feature_distance(extract_features(network, images), before))

    assert moved(10.0) < moved(0.1) < moved(0.0)


def test_classes_known_by_statistics_are_others_to_the_temporary_head(
    weights: dict[str, Tensor],
) -> None:
    images, labels = task()
    new = labels < 2  # of "others" no image
    network = fresh(weights)
    old = extract_features(network, images[labels == 2]).double()
    length = float(old.norm(dim=1).mean())
    known = GaussianReplay(
        old.mean(0, keepdim=True) / length, torch.zeros(len(old[0]), len(old[0])).double()
    )

    def answers(replay: float) -> Tensor:
        config = ADAM.model_copy(update={"replay": replay})
        network = fresh(weights)
        trained = train_adapter(
            network, images[new], labels[new], 2, config, 0, earlier=Earlier(None, known)
        )
        weight, bias = trained.head["weight"], trained.head["bias"]
        return linear(old.mean(0, keepdim=True).float(), weight, bias).softmax(1)[0, 2]

    assert answers(1.0) > 3 * answers(0.0)


def test_turned_views_are_trained_on(weights: dict[str, Tensor]) -> None:
    config = ADAM.model_copy(update={"epochs": 1, "turns": True, "batch_size": 12})
    drawn: set[int] = set()

    def loss(batch: Tensor, view: Tensor) -> tuple[Tensor, int]:
        drawn.update(view.tolist())
        return weight.square().sum(), 0

    weight = nn.Parameter(torch.ones(1))
    fit([weight], loss, 500, config, seed=0)
    assert drawn == set(range(8))
    images, labels = task()
    train_adapter(fresh(weights), images, labels, 2, config, seed=0)


def test_all_known_classes_can_be_told_apart_in_training(weights: dict[str, Tensor]) -> None:
    images, labels = task()
    config = ADAM.model_copy(update={"labels": "all"})

    def apart(config: TrainConfig) -> float:
        """How far apart the means of the two old classes are, a class being 4 images wide."""
        network = fresh(weights)
        trained = train_adapter(network, images, labels, 1, config, seed=0)
        # As ever: the task's class, and all others as one.
        assert trained.head["weight"].shape == (2, network.feature_size)
        features = extract_features(network, images)
        logits = linear(features, trained.head["weight"], trained.head["bias"])
        assert torch.equal(logits.argmax(1), labels.clamp(max=1))
        one, other = features[labels == 1], features[labels == 2]
        spread = (one.var(0) + other.var(0)).sum().sqrt()
        return float((one.mean(0) - other.mean(0)).norm() / spread)

    assert apart(config) > 1.2 * apart(ADAM)
