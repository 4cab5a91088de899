import torch

from dynammo.config import HeadConfig
from dynammo.heads.base import Evidence
from dynammo.heads.fine_tune import FineTune
from dynammo.state import State

FEATURES = torch.eye(3).unsqueeze(0)
LABELS = torch.arange(3)
# One epoch at a rate of nearly nothing: the head stays where it started.
STILL = {"epochs": 1, "learning_rate": 1e-12}


def task_head(classes: int) -> State:
    return {"weight": torch.full((classes + 1, 3), 2.0), "bias": torch.arange(classes + 1.0)}


def test_it_starts_from_the_heads_of_the_tasks_only_if_told_to() -> None:
    evidence = Evidence(FEATURES, LABELS, None, None, None, [task_head(1), task_head(2)], 1)
    merged = FineTune()(evidence, HeadConfig(init="task_heads", **STILL))
    # A class's row minus the row of "others", the last one.
    torch.testing.assert_close(merged["bias"], torch.tensor([-1.0, -2.0, -1.0]))
    torch.testing.assert_close(merged["weight"], torch.zeros(3, 3))
    new = FineTune()(evidence, HeadConfig(init="new", **STILL))
    assert new["weight"].abs().max() > 0.01


def test_without_heads_of_tasks_it_starts_anew() -> None:
    config = HeadConfig(init="task_heads", **STILL)
    first = FineTune()(Evidence(FEATURES, LABELS, None, None, None, [], 1), config)
    again = FineTune()(Evidence(FEATURES, LABELS, None, None, None, [], 1), config)
    other = FineTune()(Evidence(FEATURES, LABELS, None, None, None, [], 2), config)
    assert torch.equal(first["weight"], again["weight"])
    assert not torch.equal(first["weight"], other["weight"])


def test_it_learns_the_exemplars() -> None:
    head = FineTune()(Evidence(FEATURES, LABELS, None, None, None, [], 1), HeadConfig(epochs=300))
    predicted = torch.nn.functional.linear(FEATURES[0], head["weight"], head["bias"]).argmax(1)
    assert torch.equal(predicted, LABELS)
