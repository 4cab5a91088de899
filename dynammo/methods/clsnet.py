"""CLSNet: random hidden units, and outputs that are solved for and held for old tasks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dynammo.config import Config
from dynammo.heads.linear import Scores
from dynammo.methods.analytic import Analytic
from dynammo.methods.base import About, Style, Task
from dynammo.methods.prototypes import similarity_scores
from dynammo.state import State


class ComplementarySubnetworks(Analytic):
    """g = ReLU(f W + b) with W and b ~ U(-1, 1), drawn once; class scores are g B.

    With G (n, L) the g of a task's images and Y (n, C) their one-hot labels, a task by itself has
    the least squares B* = G^+ Y, and the first is learnt so. Afterwards, class q by class q,

        B_q <- (G^T G + sum_k l diag(F_kq) + I)^-1 (G^T Y_q + sum_k l F_kq B*_kq + B_q),

    over the tasks k before, with F_k = n_k (d CE(softmax(G_k B*_k), Y_k) / d B)^2, the squared
    gradient of the mean cross-entropy. Of both sums one matrix (L, C) is kept.

    A class that a task did not know yet counts nothing in its F and B*.

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        hidden: L.
        strength: l of every task.
    """

    about = About(
        meaning="frozen backbone; outputs of random units, held by Fisher information (CLSNet)",
        source="arXiv 2306.11967",
        memory="none",
        style=Style("#56B4E9", "v"),
    )
    kept = ("fisher", "anchor", "head")

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        hidden: int = 900,
        strength: float = 3000.0,
    ) -> None:
        super().__init__(config, weights, device)
        if hidden < 1 or strength < 0:
            raise ValueError("hidden must be at least 1, and strength at least 0")
        self.strength = strength
        generator = torch.Generator().manual_seed(self.seed("projection"))
        # The last row is b.
        drawn = torch.rand(self.feature_size + 1, hidden, generator=generator, dtype=torch.float64)
        self.units = 2 * drawn - 1
        self.fisher = torch.zeros(hidden, 0, dtype=torch.float64)  # sum_k l F_k
        self.anchor = torch.zeros(hidden, 0, dtype=torch.float64)  # sum_k l F_k B*_k
        self.head = torch.zeros(hidden, 0, dtype=torch.float64)  # B

    def hidden(self, features: Tensor) -> Tensor:
        """(N, D) -> g, (N, L) float64."""
        return (features.double() @ self.units[:-1] + self.units[-1]).relu()

    def take(self, features: Tensor, task: Task) -> None:
        g = self.hidden(features)
        targets = functional.one_hot(task.new.labels, task.classes).double()
        alone = torch.linalg.pinv(g) @ targets
        new = task.classes - task.first
        fisher, anchor, head = (
            functional.pad(known, (0, new)) for known in (self.fisher, self.anchor, self.head)
        )
        self.head = consolidate(g, targets, fisher, anchor, head) if task.first else alone
        own = self.strength * information(g, targets, alone)
        self.fisher, self.anchor = fisher + own, anchor + own * alone

    def scores(self, features: Tensor) -> Scores:
        return similarity_scores(self.hidden(features) @ self.head)

    @property
    def head_weights(self) -> int:
        return self.units.numel() + self.head.numel()


def information(g: Tensor, targets: Tensor, head: Tensor) -> Tensor:
    """F = n (d CE / d B)^2, (L, C), of the mean cross-entropy of softmax(G B) at B = `head`.

    Args:
        g: (n, L).
        targets: (n, C), one-hot.
        head: (L, C).
    """
    gradient = g.T @ ((g @ head).softmax(1) - targets) / len(g)
    return len(g) * gradient.square()


def consolidate(g: Tensor, targets: Tensor, fisher: Tensor, anchor: Tensor, head: Tensor) -> Tensor:
    """The B (L, C) that fits G B to Y without leaving what old tasks need: column q minimises

        |G b - Y_q|^2 + sum_i F_iq (b_i - B*_iq)^2 + |b - B_q|^2.

    Args:
        g: G (n, L).
        targets: Y (n, C).
        fisher: F (L, C), not negative.
        anchor: F B* (L, C).
        head: B (L, C), as it was.
    """
    gram, wanted = g.T @ g, g.T @ targets + anchor + head
    columns = [
        torch.linalg.solve(gram + torch.diag(held + 1), column)
        for held, column in zip(fisher.T, wanted.T, strict=True)
    ]
    return torch.stack(columns, dim=1)
