import torch

from dynammo.merging.heads import merge_task_heads


def test_by_hand() -> None:
    first = {
        "weight": torch.tensor([[3.0, 1.0], [2.0, 2.0], [1.0, 0.0]]),
        "bias": torch.arange(3.0),
    }
    second = {"weight": torch.tensor([[5.0, 5.0], [4.0, 1.0]]), "bias": torch.tensor([0.5, 2.0])}
    merged = merge_task_heads([first, second])
    # Each class's row minus the row of its own head's "others", which is the last.
    assert torch.equal(merged["weight"], torch.tensor([[2.0, 1.0], [1.0, 2.0], [1.0, 4.0]]))
    assert torch.equal(merged["bias"], torch.tensor([-2.0, -1.0, -1.5]))


def test_a_task_of_its_own_ranks_its_classes_as_its_head_does() -> None:
    torch.manual_seed(0)
    head = {"weight": torch.randn(4, 6), "bias": torch.randn(4)}
    features = torch.randn(20, 6)
    merged = merge_task_heads([head])
    own = features @ head["weight"][:-1].T + head["bias"][:-1]
    assert torch.equal((features @ merged["weight"].T + merged["bias"]).argmax(1), own.argmax(1))
