"""What the methods that train the whole pretrained network have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynammo.config import Config
from dynammo.heads.linear import Scores, unified_scores
from dynammo.methods.base import Method, Task, TaskImages, Watch
from dynammo.state import State
from dynammo.training.loop import Epoch, fit


class Batch(NamedTuple):
    """Images (B, 3, H, W) uint8, some of them mirrored, and their labels (B,), on the device."""

    images: Tensor
    labels: Tensor


Loss = Callable[[Batch], tuple[Tensor, Tensor]]


class TrainedNetwork(Method):
    """The whole backbone and one head over all classes seen, linear here, trained together.

    Trained as the adapters are (`config.train`: SGD with momentum, epochs, batch size, flips), with
    a learning rate of its own, `network_learning_rate`.
    BatchNorm stays in eval mode, with the pretrained means and variances: a batch of a few images
    of a few classes estimates them badly, and the old classes' would be lost with every task.
    """

    sections: ClassVar[tuple[str, ...]] = ("train",)
    trains_network = True

    def __init__(
        self, config: Config, weights: State | None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(config, weights, device)
        self.network.requires_grad_(True)
        self.start_head()

    def start_head(self) -> None:
        """Take a head without outputs."""
        self.use_head({"weight": torch.zeros(0, self.feature_size), "bias": torch.zeros(0)})

    def grow(self, task: Task) -> None:
        """Give the head outputs for the classes, and inputs for the features, that it lacks.

        They start at zero: while they do, no gradient reaches the pretrained network through them.
        The random outputs of a fresh head send it one that destroys what it knows within a few
        steps, the more classes the worse (arXiv 2202.10054).
        """
        classes, features = self.weight.shape
        rows, columns = task.classes - classes, self.feature_size - features
        weight = functional.pad(self.weight.detach(), (0, columns, 0, rows))
        self.use_head({"weight": weight, "bias": functional.pad(self.bias.detach(), (0, rows))})

    def outputs(self, features: Tensor, head: Mapping[str, Tensor]) -> Tensor:
        """(B, D) -> (B, C), what a head says of features."""
        return functional.linear(features, head["weight"], head["bias"])

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C), as they are trained."""
        return self.outputs(self.network(images), self.head_parameters()).float()

    def cross_entropy(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss over all classes seen, mean over the batch; a `Loss`."""
        logits = self.logits(batch.images)
        return functional.cross_entropy(logits, batch.labels), logits

    def start_anew(self) -> None:
        """Forget everything: the pretrained network, and a head without outputs."""
        TrainedNetwork.__init__(self, self.config, self.weights, self.device)

    def frozen_copy(self) -> Callable[[Tensor], Tensor]:
        """`logits` as they are now, whatever is learnt later."""
        network = deepcopy(self.network)
        head = {name: value.detach().clone() for name, value in self.head_parameters().items()}

        @torch.no_grad()
        def logits(images: Tensor) -> Tensor:
            return self.outputs(network(images), head)

        return logits

    def fit(
        self,
        data: TaskImages,
        loss: Loss,
        task: Task,
        watch: Watch,
        parameters: Iterable[nn.Parameter] | None = None,
    ) -> list[Epoch]:
        """Train the head, and the whole backbone or what is given.

        Args:
            data: visited once an epoch.
            loss: of a batch: the value, and the logits that its images are predicted by.
            task: for its number.
            watch: is told.
            parameters: to train instead of the backbone's.
        """

        def of(indices: Tensor, views: Tensor) -> tuple[Tensor, int]:
            batch = self.batch(data, indices, views)
            value, logits = loss(batch)
            return value, int((logits.argmax(1) == batch.labels).sum())

        self.network.eval()
        body = self.network.parameters() if parameters is None else parameters
        seed = self.seed("learn", task.number)
        trained = [*body, *self.head_parameters().values()]
        settings = self.config.train
        rate = "network_learning_rate"
        return fit(trained, of, len(data.labels), settings, seed, *watch, rate=rate)

    def batch(self, data: TaskImages, indices: Tensor, views: Tensor) -> Batch:
        """Images by index (B,), each as it is (view 0) or mirrored (view 1)."""
        images = data.images[indices]
        images = torch.where(views.view(-1, 1, 1, 1) == 1, images.flip(-1), images)
        return Batch(images.to(self.device), data.labels[indices].to(self.device))

    def scores(self, features: Tensor) -> Scores:
        return unified_scores(features, self.head())

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained beside the network: `weight` (C, D) and `bias` (C,)."""
        return {"weight": self.weight, "bias": self.bias}

    def head(self) -> State:
        """A copy of `head_parameters`, on the CPU."""
        return {name: value.detach().cpu() for name, value in self.head_parameters().items()}

    def use_head(self, head: State) -> None:
        """Take what `head` gave, as it is."""
        self.weight = nn.Parameter(head["weight"].to(self.device))
        self.bias = nn.Parameter(head["bias"].to(self.device))

    @property
    def head_weights(self) -> int:
        return self.weight.numel()

    def state(self) -> State:
        network = {f"network.{k}": v.cpu() for k, v in self.network.state_dict().items()}
        return {**network, **{f"head.{name}": value for name, value in self.head().items()}}

    def load_state(self, state: State) -> None:
        self.network.load_state_dict(part(state, "network"))
        self.use_head(part(state, "head"))


class Replay:
    """Random batches of the exemplars, mirrored as training images are.

    Args:
        method: draws for its device.
        memory: the exemplars.
        seed: of the draws.
    """

    def __init__(self, method: TrainedNetwork, memory: TaskImages, seed: int) -> None:
        self.method = method
        self.memory = memory
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, count: int) -> tuple[Batch, Tensor]:
        """A batch of `count` exemplars, drawn with replacement, and their indices in the memory."""
        indices = torch.randint(len(self.memory.labels), (count,), generator=self.generator)
        views = torch.zeros_like(indices)
        if self.method.config.train.flip:
            views = (torch.rand(count, generator=self.generator) < 0.5).long()
        return self.method.batch(self.memory, indices, views), indices


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between softened outputs, mean over the batch.

        L = - mean_i sum_c softmax(teacher_i / T)_c log softmax(logits_i / T)_c

    Its gradient with respect to the logits is (softmax(logits / T) - softmax(teacher / T)) / (T B).

    Args:
        logits: (B, C).
        teacher: (B, C), of the network before the task.
        temperature: T.

    Source: arXiv 1503.02531; as used in arXiv 1606.09282.
    """
    targets = (teacher / temperature).softmax(1)
    return functional.cross_entropy(logits / temperature, targets)


def part(state: State, prefix: str) -> State:
    """The entries `prefix.name`, as `name`."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
