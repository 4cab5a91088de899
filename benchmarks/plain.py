"""The published procedure written down plainly: nothing is kept that could be computed again.

Each epoch reads and resizes every picture from its file; each step runs the whole network, frozen
layers included, in torch's own layout of tensors; balanced fine-tuning runs the network (unmerged:
every task's) on the memory in every epoch. Random choices are those of the library, so both learn
the same up to rounding. `speed.py` compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dynammo.config import Config, HeadConfig, TrainConfig
from dynammo.data.formats.pictures import load_image
from dynammo.heads.linear import least_others_scores, new_head, task_labels, unified_scores
from dynammo.memory.herding import herd, quota
from dynammo.merging.average import average
from dynammo.network.network import Network, build_network
from dynammo.seeds import derive_seed
from dynammo.state import State
from dynammo.training.loop import fit


@dataclass(frozen=True)
class Files:
    """Pictures in files, and the class of each as a number in order of arrival (N,)."""

    paths: Sequence[Path]
    labels: Tensor
    size: int

    def read(self, rows: Sequence[int], mirrored: Sequence[int] | None = None) -> Tensor:
        """Decode and resize: (B, 3, S, S) uint8."""
        pictures = [load_image(self.paths[row], self.size) for row in rows]
        batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
        if mirrored is not None:
            flip = torch.as_tensor(mirrored, dtype=torch.bool)
            batch[flip] = batch[flip].flip(-1)
        return batch

    def of(self, classes: range) -> list[int]:
        """Rows of the pictures of some classes."""
        inside = (self.labels >= classes.start) & (self.labels < classes.stop)
        return [int(row) for row in inside.nonzero().flatten()]


class Whole(nn.Module):
    """A network as one would write it first: tensors in torch's own layout."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.contiguous_format)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) pixels in 0..255 -> (B, D)."""
        network = self.network
        features: Tensor = network.backbone((images.float() - network.mean) / network.std)
        return features


def features_of(network: nn.Module, files: Files, rows: Sequence[int]) -> Tensor:
    """(N, D), read from the files."""
    with torch.no_grad():
        parts = [network(files.read(rows[start : start + 64])) for start in range(0, len(rows), 64)]
    return torch.cat(parts)


def train_adapter(
    network: Network,
    read: Files,
    rows: Sequence[int],
    labels: Tensor,
    classes: int,
    config: TrainConfig,
    seed: int,
) -> tuple[State, State]:
    """Stage 1: adapter and temporary head."""
    whole = Whole(network)
    head = nn.Linear(network.feature_size, classes + 1)
    head.load_state_dict(new_head(network.feature_size, classes + 1, seed))

    def loss(batch: Tensor, view: Tensor) -> tuple[Tensor, int]:
        images = read.read([rows[i] for i in batch.tolist()], view.tolist())
        logits, targets = head(whole(images)), labels[batch]
        right = int((logits.argmax(1) == targets).sum())
        return functional.cross_entropy(logits, targets), right

    network.train()
    fit([*network.adapter_parameters(), *head.parameters()], loss, len(rows), config, seed)
    network.eval()
    state = {name: value.detach().clone() for name, value in head.state_dict().items()}
    return network.adapter_state(), state


def fine_tune(
    network: nn.Module,
    files: Files,
    rows: Sequence[int],
    labels: Tensor,
    initial: State,
    config: HeadConfig,
    seed: int,
) -> State:
    """Stage 2: every epoch runs the whole network on the memory."""
    weight, bias = (nn.Parameter(initial[name].clone()) for name in ("weight", "bias"))
    optimiser = torch.optim.Adam([weight, bias], lr=config.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(config.epochs):
        order = torch.randperm(len(rows), generator=generator)
        view = torch.randint(1 + config.flip, (len(rows),), generator=generator)
        for batch in order.split(config.batch_size):
            images = files.read([rows[i] for i in batch.tolist()], view[batch].tolist())
            with torch.no_grad():
                features = network(images)
            loss = functional.cross_entropy(
                functional.linear(features, weight, bias), labels[batch]
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return {"weight": weight.detach(), "bias": bias.detach()}


def run(
    config: Config, weights: State, train: Files, test: Files, sizes: Sequence[int], unmerged: bool
) -> list[dict[str, float]]:
    """All tasks: for each, the accuracy on the test images of all classes seen."""

    def network(state: State | None, seed: int = 0) -> Network:
        built = build_network(config.backbone, weights, config.image.form, config.adapter, seed)
        if state is not None:
            built.load_adapter_state(state)
        return built

    adapters: list[State] = []
    heads: list[State] = []
    kept: list[list[int]] = []
    results = []
    seen = 0
    for number, size in enumerate(sizes, start=1):
        new = train.of(range(seen, seen + size))
        others = [row for rows in kept for row in rows]
        labels = torch.cat([train.labels[new] - seen, torch.full((len(others),), size)])
        net = network(adapters[-1] if adapters else None, derive_seed(config.seed, "a", number))
        adapter, head = train_adapter(
            net, train, [*new, *others], labels, size, config.train, derive_seed(1, "t", number)
        )
        adapters.append(adapter)
        heads.append(head)
        seen += size

        merged = Whole(network(average(adapters)))
        count = quota(config.memory, seen)
        features = features_of(merged, train, new)
        for label in range(seen - size, seen):
            mine = [i for i, row in enumerate(new) if train.labels[row] == label]
            kept.append([new[mine[i]] for i in herd(features[mine], count)])
        kept = [rows[:count] for rows in kept]
        memory = [row for rows in kept for row in rows]
        known = train.labels[memory]
        tested = test.of(range(seen))

        initial = new_head(net.feature_size, seen, derive_seed(config.seed, "h", number))
        seed = derive_seed(config.seed, "f", number)
        one = fine_tune(merged, train, memory, known, initial, config.head, seed)
        scores = unified_scores(features_of(merged, test, tested), one)
        result = {"merged": _accuracy(scores.predicted, test.labels[tested])}
        if unmerged:
            # n passes an image: every task's network, in every epoch and at every test.
            every = [Whole(network(state)) for state in adapters]
            if number > 1:
                first = 0
                for k, own in enumerate(sizes[:number]):
                    targets = task_labels(known, first, own)
                    seed = derive_seed(config.seed, "u", k, number)
                    heads[k] = fine_tune(
                        every[k], train, memory, targets, heads[k], config.head, seed
                    )
                    first += own
            answers = [features_of(each, test, tested) for each in every]
            scores = least_others_scores(answers, heads)
            result["unmerged"] = _accuracy(scores.predicted, test.labels[tested])
        results.append(result)
    return results


def _accuracy(predicted: Tensor, labels: Tensor) -> float:
    return float((predicted == labels).double().mean())
