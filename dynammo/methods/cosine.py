"""What the methods have in common whose head looks at directions alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional

from dynammo.config import Config
from dynammo.heads.linear import Scores
from dynammo.methods.base import Task, TaskImages
from dynammo.methods.training import TrainedNetwork
from dynammo.network.features import extract_features
from dynammo.state import State


class CosineNetwork(TrainedNetwork):
    """The whole backbone and a head of K proxies w_ck a class, trained together: logits s y_c,

        y_c = sum_k p_ck cos(f, w_ck),  p_ck = softmax_k cos(f, w_ck),

    with one learnt scale s. With K = 1 that is the cosine. Rows of the head have directions alone:
    it has no bias, and no class wins by a long row.

    A direction cannot start at zero; new proxies start where the new images are (`imprinted`).

    Args:
        config: as of every method.
        weights: likewise.
        device: likewise.
        scale: s before training.
        proxies: K.
    """

    def __init__(
        self,
        config: Config,
        weights: State | None,
        device: torch.device | str,
        scale: float,
        proxies: int = 1,
    ) -> None:
        if scale <= 0 or proxies < 1:
            raise ValueError("scale must be above 0, and proxies at least 1")
        self.first_scale, self.proxies = scale, proxies
        super().__init__(config, weights, device)

    def start_head(self) -> None:
        empty = torch.zeros(0, self.feature_size)
        self.use_head({"weight": empty, "scale": torch.tensor(float(self.first_scale))})

    def grow(self, task: Task) -> None:
        """Give the head proxies for the task's classes, as long as the old ones on average."""
        weight = self.weight.detach()
        new = imprinted(self.network, task.new, self.proxies, self.seed("proxies", task.number))
        length = weight.norm(dim=1).mean() if len(weight) else weight.new_ones(())
        weight = torch.cat([weight, length * new.to(self.device)])
        self.use_head({**self.head(), "weight": weight})

    def similarities(self, features: Tensor, head: Mapping[str, Tensor]) -> Tensor:
        """(B, D) -> y, (B, C), within -1 and 1."""
        unit = functional.normalize(features, dim=1)
        cosines = functional.linear(unit, functional.normalize(head["weight"], dim=1))
        return soft_maximum(cosines.unflatten(1, (-1, self.proxies)))

    def outputs(self, features: Tensor, head: Mapping[str, Tensor]) -> Tensor:
        return head["scale"] * self.similarities(features, head)

    def head_parameters(self) -> dict[str, nn.Parameter]:
        return {"weight": self.weight, "scale": self.scale}

    def use_head(self, head: State) -> None:
        self.weight = nn.Parameter(head["weight"].to(self.device))
        self.scale = nn.Parameter(head["scale"].to(self.device))

    def scores(self, features: Tensor) -> Scores:
        head = self.head()
        similarities = self.similarities(features, head)
        probabilities = (head["scale"] * similarities).double().softmax(1)
        confidence, predicted = probabilities.max(1)
        return Scores(predicted, probabilities, confidence, similarities.max(1).values)


def soft_maximum(cosines: Tensor) -> Tensor:
    """sum_k softmax_k(x)_k x_k over the last dimension."""
    return (cosines.softmax(-1) * cosines).sum(-1)


def imprinted(network: nn.Module, images: TaskImages, proxies: int = 1, seed: int = 0) -> Tensor:
    """Directions (C K, D) at unit length, class by class: the centres of K clusters (k-means) of
    the class's features at unit length; with K = 1 their mean.

    A class of fewer than K different images has its centres more than once.

    Args:
        network: (B, 3, H, W) -> (B, D).
        images: of C classes.
        proxies: K.
        seed: of the clustering.
    """
    features = functional.normalize(extract_features(network, images.images), dim=1)
    rows = []
    for label in images.labels.unique():
        own = features[images.labels == label]
        if proxies == 1:
            centres = own.mean(0, keepdim=True)
        else:
            count = min(proxies, len(own.unique(dim=0)))
            found = KMeans(count, n_init=1, random_state=seed % 2**32).fit(own.double().numpy())
            repeated = found.cluster_centers_[np.arange(proxies) % count]
            centres = torch.from_numpy(repeated).float()
        rows.append(functional.normalize(centres, dim=1))
    return torch.cat(rows)
