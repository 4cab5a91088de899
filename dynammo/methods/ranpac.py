"""RanPAC: a random projection of the frozen features, and ridge regression on what accumulates."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dynammo.config import Config
from dynammo.heads.linear import Scores
from dynammo.methods.base import About, Method, Style, Task, Watch
from dynammo.methods.prototypes import similarity_scores
from dynammo.network.features import extract_features
from dynammo.state import State
from dynammo.training.loop import Epoch

RIDGES = [10.0**power for power in range(-8, 9)]


class RanPac(Method):
    """h = ReLU(f W) with W drawn once from N(0, 1); class scores are h (G + ridge I)^-1 Q.

    G = sum h^T h and Q = sum h^T onehot(y) over all images seen: learning task by task gives what
    learning at once would. Of several W the scores' mean is taken, for one draw may be lucky.

    With `cosine` the scores are the cosines of h and the columns of (G + ridge I)^-1 Q, which a
    class of many images makes longer. The authors' program does not; a widely used one (PILOT,
    arXiv 2309.07117) does.

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        projection: M, the length of h. The paper takes 10,000; G has M^2 numbers.
        ridge: the penalty; none chooses it as `choose_ridge` says.
        cosine: whether scores are cosines.
        projections: how many W.
    """

    about = About(
        meaning="frozen backbone; ridge regression on random projections of its features (RanPAC)",
        source="arXiv 2307.02251",
        memory="none",
        style=Style("#56B4E9", "D"),
    )
    bare = True

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str = "cpu",
        projection: int = 2000,
        ridge: float | None = None,
        cosine: bool = False,
        projections: int = 1,
    ) -> None:
        super().__init__(config, weights, device)
        if projection < 1 or projections < 1:
            wrong = projection if projection < 1 else projections
            raise ValueError(f"projection and projections must be at least 1, got {wrong}")
        self.ridge, self.cosine = ridge, cosine
        generator = torch.Generator().manual_seed(self.seed("projection"))
        self.projection = torch.randn(
            projections, self.feature_size, projection, generator=generator
        )
        shape = (projections, projection)
        self.gram = torch.zeros(*shape, projection, dtype=torch.float64)
        self.sums = torch.zeros(*shape, 0, dtype=torch.float64)
        self.head = torch.zeros(*shape, 0, dtype=torch.float64)

    def project(self, features: Tensor) -> Tensor:
        """(N, D) -> h of each W, (P, N, M) float64."""
        return (features @ self.projection).relu().double()

    def learn(self, task: Task, watch: Watch) -> list[Epoch]:
        features = extract_features(self.network, task.new.images, progress=watch.progress)
        targets = functional.one_hot(task.new.labels, task.classes).double()
        self.sums = functional.pad(self.sums, (0, task.classes - self.sums.shape[2]))
        heads = []
        for h, gram, sums in zip(self.project(features), self.gram, self.sums, strict=True):
            gram += h.T @ h
            sums += h.T @ targets
            ridge = self.ridge
            if ridge is None:
                ridge = choose_ridge(h, targets, self.seed("ridge", task.number))
            heads.append(solve_ridge(gram, sums, ridge))
        self.head = torch.stack(heads)
        return []

    def scores(self, features: Tensor) -> Scores:
        h, head = self.project(features), self.head
        if self.cosine:
            h, head = functional.normalize(h, dim=2), functional.normalize(head, dim=1)
        return similarity_scores((h @ head).mean(0))

    @property
    def head_weights(self) -> int:
        return self.projection.numel() + self.head.numel()

    def state(self) -> State:
        return {"gram": self.gram, "sums": self.sums, "head": self.head}

    def load_state(self, state: State) -> None:
        self.gram, self.sums, self.head = state["gram"], state["sums"], state["head"]


def solve_ridge(gram: Tensor, sums: Tensor, ridge: float) -> Tensor:
    """(G + ridge I)^-1 Q: the weights (M, C) of least squares with ridge ||weights||^2 added.

    Args:
        gram: G (M, M), symmetric, float64.
        sums: Q (M, C).
        ridge: of the order of G's eigenvalues or far below.
    """
    values, vectors = torch.linalg.eigh(gram)
    # Rounding leaves eigenvalues that should be 0 a little below it.
    inverse = (values.clamp(min=0) + ridge).reciprocal().unsqueeze(1)
    solution: Tensor = vectors @ (inverse * (vectors.T @ sums))
    return solution


def choose_ridge(h: Tensor, targets: Tensor, seed: int) -> float:
    """The ridge among 10^-8, ..., 10^8 that predicts a fifth of the images best from the others.

    Best is the smallest mean squared error of the targets. As in the authors' program only the
    newest task's images take part.

    Args:
        h: (N, M) float64.
        targets: (N, C) float64.
        seed: of the choice of the fifth.
    """
    order = torch.randperm(len(h), generator=torch.Generator().manual_seed(seed))
    count = max(1, int(0.8 * len(h)))
    fitted, held = order[:count], order[count:]
    if not len(held):
        raise ValueError("choosing the ridge needs at least 2 images")
    u, s, v = torch.linalg.svd(h[fitted], full_matrices=False)
    inner, outer = u.T @ targets[fitted], h[held] @ v.T
    errors = [
        functional.mse_loss(
            outer @ (inner * (s / (s.square() + ridge)).unsqueeze(1)), targets[held]
        )
        for ridge in RIDGES
    ]
    return RIDGES[int(torch.stack(errors).argmin())]
