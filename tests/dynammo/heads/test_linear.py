from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynammo.config import HeadConfig
from dynammo.heads.linear import (
    fine_tune_head,
    least_others_scores,
    new_head,
    task_labels,
    unified_scores,
)
from dynammo.state import State


def zero_head(features: int, classes: int) -> State:
    return {"weight": torch.zeros(classes, features), "bias": torch.zeros(classes)}


def identity_head(size: int) -> State:
    """Logits are the features, so features log p give probabilities p."""
    return {"weight": torch.eye(size), "bias": torch.zeros(size)}


def log_of(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor([[log(p) for p in row] for row in rows], dtype=torch.float64).float()


def clusters(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (1, 30, 4) of three well separated classes, and their labels."""
    labels = torch.arange(30) % 3
    noise = 0.1 * torch.randn(30, 4, generator=torch.Generator().manual_seed(seed))
    return (torch.eye(4)[labels] + noise).unsqueeze(0), labels


def test_a_new_head_depends_on_the_seed_alone() -> None:
    first = new_head(5, 3, seed=7)
    torch.rand(3)
    again, other = new_head(5, 3, seed=7), new_head(5, 3, seed=8)
    assert {name: tuple(value.shape) for name, value in first.items()} == {
        "weight": (3, 5),
        "bias": (3,),
    }
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
        assert first[name].abs().max() <= 5**-0.5  # torch draws from U(-1/sqrt(D), 1/sqrt(D))


def test_a_new_head_leaves_the_global_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    new_head(5, 3, seed=7)
    assert torch.equal(torch.rand(2), expected)


def test_separable_features_are_learnt() -> None:
    features, labels = clusters()
    config = HeadConfig(epochs=30, learning_rate=0.05, batch_size=8)
    head = fine_tune_head(features, labels, new_head(4, 3, seed=0), config, seed=0)
    assert unified_scores(features[0], head).predicted.tolist() == labels.tolist()
    unseen, truth = clusters(seed=1)
    assert unified_scores(unseen[0], head).predicted.tolist() == truth.tolist()


def test_one_step_by_hand() -> None:
    # From zero both classes have probability 1/2: the gradient is -x/2 for the true class and x/2
    # for the other. Adam's first step has length lr in the direction of minus the sign.
    head = fine_tune_head(
        torch.tensor([[[2.0, -3.0]]]),
        torch.tensor([0]),
        zero_head(2, 2),
        HeadConfig(epochs=1, learning_rate=0.1),
        seed=0,
    )
    torch.testing.assert_close(head["weight"], torch.tensor([[0.1, -0.1], [-0.1, 0.1]]))
    torch.testing.assert_close(head["bias"], torch.tensor([0.1, -0.1]))


def test_every_view_is_trained_on() -> None:
    """One view tells the classes apart by the first feature, the other by the second."""
    signs, nothing = torch.tensor([1.0, -1.0] * 8), torch.zeros(16)
    features = torch.stack([torch.stack([signs, nothing], 1), torch.stack([nothing, signs], 1)])
    labels = (signs < 0).long()
    config = HeadConfig(epochs=5, learning_rate=0.1)
    head = fine_tune_head(features, labels, zero_head(2, 2), config, seed=0)
    for view in features:
        assert unified_scores(view, head).predicted.tolist() == labels.tolist()


def test_every_image_is_trained_on() -> None:
    """Each image has a feature of its own; 5 is no multiple of the batch size."""
    config = HeadConfig(epochs=1, learning_rate=0.1, batch_size=2)
    labels = torch.tensor([0, 1, 0, 1, 1])
    head = fine_tune_head(torch.eye(5).unsqueeze(0), labels, zero_head(5, 2), config, seed=0)
    assert head["weight"].argmax(0).tolist() == labels.tolist()


def test_fine_tuning_depends_on_the_seed_alone() -> None:
    features, labels = clusters()
    config = HeadConfig(epochs=2, batch_size=4)
    first, again, other = (
        fine_tune_head(features, labels, new_head(4, 3, seed=0), config, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first["weight"], again["weight"])
    assert torch.equal(first["bias"], again["bias"])
    assert not torch.equal(first["weight"], other["weight"])


def test_fine_tuning_leaves_its_inputs_alone() -> None:
    features, labels = clusters()
    initial = new_head(4, 3, seed=0)
    head = fine_tune_head(features, labels, initial, HeadConfig(epochs=1), seed=0)
    assert torch.equal(features, clusters()[0]) and torch.equal(labels, clusters()[1])
    for name, value in new_head(4, 3, seed=0).items():
        assert torch.equal(initial[name], value)
        assert not torch.equal(head[name], value)
        assert not head[name].requires_grad


def test_fine_tuning_tells_its_progress() -> None:
    features, labels = clusters()
    seen: list[tuple[int, int]] = []
    fine_tune_head(
        features,
        labels,
        zero_head(4, 3),
        HeadConfig(epochs=3),
        seed=0,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_unified_scores_by_hand() -> None:
    scores = unified_scores(log_of((0.7, 0.2, 0.1), (0.1, 0.3, 0.6)), identity_head(3))
    assert scores.predicted.tolist() == [0, 2]
    assert scores.probabilities.flatten().tolist() == pytest.approx([0.7, 0.2, 0.1, 0.1, 0.3, 0.6])
    assert scores.confidence.tolist() == pytest.approx([0.7, 0.6])
    assert scores.knownness.tolist() == pytest.approx([0.7, 0.6])


def test_the_bias_counts() -> None:
    head = {"weight": torch.eye(2), "bias": torch.tensor([0.0, log(3)])}
    # Logits 0 and ln 3: probabilities 1/4 and 3/4.
    assert unified_scores(torch.zeros(1, 2), head).probabilities[0].tolist() == pytest.approx(
        [0.25, 0.75]
    )


def test_least_others_by_hand() -> None:
    # Classes 0, 1 and others; class 2 and others. One image a row.
    first = log_of((0.5, 0.1, 0.4), (0.2, 0.6, 0.2))
    second = log_of((0.7, 0.3), (0.75, 0.25))
    scores = least_others_scores([first, second], [identity_head(3), identity_head(2)])
    # The second task's others is smaller (0.3 against 0.4), then the first's (0.2 against 0.25):
    # there class 1 wins, although class 2 is the more probable one (0.75) under the other task.
    assert scores.predicted.tolist() == [2, 1]
    assert scores.confidence.tolist() == pytest.approx([0.7, 0.6])
    assert scores.knownness.tolist() == pytest.approx([0.7, 0.8])
    assert scores.probabilities[0].tolist() == pytest.approx([0.5, 0.1, 0.7])
    assert scores.probabilities[1].tolist() == pytest.approx([0.2, 0.6, 0.75])


def test_of_equal_tasks_the_earliest_wins() -> None:
    zeros = torch.zeros(1, 2)
    scores = least_others_scores([zeros] * 3, [zero_head(2, 3)] * 3)
    assert scores.predicted.tolist() == [0]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 10_000))
def test_the_prediction_is_the_best_class_of_the_task_with_least_others(
    sizes: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = [3 * torch.randn(5, size + 1, generator=generator) for size in sizes]
    scores = least_others_scores(features, [identity_head(size + 1) for size in sizes])
    assert scores.probabilities.shape == (5, sum(sizes))
    for image in range(5):
        rows = [task[image].double().softmax(0).tolist() for task in features]
        task = min(range(len(rows)), key=lambda k: rows[k][-1])
        own = rows[task][:-1]
        best = max(range(len(own)), key=own.__getitem__)
        assert scores.predicted[image] == sum(sizes[:task]) + best
        assert scores.confidence[image].item() == pytest.approx(own[best])
        assert scores.knownness[image].item() == pytest.approx(1 - rows[task][-1])


def test_heads_and_features_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="shorter"):
        least_others_scores([torch.zeros(1, 2)] * 2, [zero_head(2, 2)])


def test_task_labels() -> None:
    # Classes 2 and 3 are the task's; everything else is "others", number 2.
    labels = torch.tensor([0, 1, 2, 3, 4, 5])
    assert task_labels(labels, first=2, classes=2).tolist() == [2, 2, 0, 1, 2, 2]
    assert labels.tolist() == [0, 1, 2, 3, 4, 5]
