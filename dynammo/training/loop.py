"""The training loop, and adapter training: stage 1 of the method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynammo.config import TrainConfig
from dynammo.errors import DynammoError
from dynammo.heads.linear import new_head
from dynammo.network.features import count_views, views_of
from dynammo.network.frozen_norms import without_frozen_norms
from dynammo.network.network import Network
from dynammo.seeds import derive_seed
from dynammo.state import State
from dynammo.training.earlier import Earlier, feature_distance
from dynammo.training.frozen_prefix import run_anew, run_once, split_at_first_adapter

_DIVERGED = 10  # times the loss before training


class Epoch(NamedTuple):
    """Means over one epoch's training images: cross-entropy in nats, share right."""

    loss: float
    accuracy: float


class TrainedAdapter(NamedTuple):
    """The adapter, the temporary head it was trained with, and how the training went."""

    adapter: State
    head: State
    history: list[Epoch]


def train_adapter(
    network: Network,
    images: Tensor,
    labels: Tensor,
    classes: int,
    config: TrainConfig,
    seed: int,
    on_epoch: Callable[[int, Epoch], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    earlier: Earlier | None = None,
) -> TrainedAdapter:
    """Train the network's adapters and a temporary head on one task.

    Minimises the cross-entropy over |C_t| + 1 outputs: the task's classes and "others". The
    backbone is frozen and its BatchNorm stays in eval mode, so its convolutions do the BatchNorms'
    work as well, and what comes before the first adapter is computed once, in each image's views
    (unless `config.brightness` makes each image another one each time).

    With k old classes known by their statistics, features drawn from these are "others" as well, at
    the weight w = `config.replay`; an earlier network holds the features where they were, at the
    weight d = `config.distil`:

        L = (|C_t| CE + k w CE(drawn)) / (|C_t| + k w) + d feature_distance

    With `config.labels` all, the adapter is trained by a head over all |C_t| + k classes, and that
    with "others" beside it, which moves no feature.

    Args:
        network: its adapters are the starting point and are changed in place.
        images: (N, 3, H, W) uint8: the task's images and the exemplars of old classes.
        labels: (N,) 0..|C_t| - 1 for the task's classes, from |C_t| on for k old classes.
        classes: |C_t|.
        config: epochs, learning rate, and so on.
        seed: of the head's initial weights, the order of the images and the flips.
        on_epoch: called after each epoch with its number (from 1) and means.
        progress: called after each batch with (batches done, batches in all epochs).
        earlier: what old classes are remembered by; nothing with the first task.

    Raises:
        DynammoError: fewer than two images, or training diverged (see `fit`).

    Source: arXiv 2304.09042 and 2404.14099, without the earlier network and statistics.
    """
    if len(images) < 2:
        raise DynammoError(f"training an adapter needs at least 2 images, got {len(images)}")
    device = next(network.parameters()).device
    head = _head(network.feature_size, classes + 1, seed).to(device)
    prefix, suffix = split_at_first_adapter(without_frozen_norms(network))
    views = views_of(images, config.flip, config.turns)
    inputs = _inputs(prefix, views, config, seed, device)
    criterion = partial(functional.cross_entropy, label_smoothing=config.label_smoothing)
    replay = earlier.classes if earlier and config.replay else None
    length = scale = 1.0
    if replay is not None or config.optimiser == "adamw":
        with torch.no_grad(), autocast(config, device):
            start = torch.arange(min(config.batch_size, len(images)))
            first = suffix(inputs(torch.zeros_like(start), start)).float()
        length = float(first.norm(dim=1).mean())
    if config.optimiser == "adamw":
        # Adam's steps are of one size whatever the features': they are brought to the size 1.
        scale = math.sqrt(network.feature_size) / length
    known = len(replay.means) if replay else 0
    draws = torch.Generator().manual_seed(derive_seed(seed, "replay"))
    teacher = None
    if earlier and earlier.network and config.distil:
        _, teacher = split_at_first_adapter(without_frozen_norms(earlier.network))
    known = max(known, int(labels.max()) + 1 - classes)
    wide = None
    if config.labels == "all" and known:
        wide = _head(network.feature_size, classes + known, seed).to(device)

    def told_apart(
        head: nn.Module, features: Tensor, targets: Tensor, drawn: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """The cross-entropy of images and of what is drawn, and the images' logits."""
        logits = head(features).float()
        value = criterion(logits, targets)
        if drawn is not None:
            old = config.replay * known
            value = classes * value + old * criterion(head(drawn[0]).float(), drawn[1])
            value = value / (classes + old)
        return value, logits

    def loss(batch: Tensor, view: Tensor) -> tuple[Tensor, int]:
        targets = labels[batch].to(device)
        given = inputs(view, batch)
        found = suffix(given)
        features, drawn, others = found * scale, None, None
        if replay is not None:
            old, owner = (part.to(device) for part in replay.draw(len(batch), draws))
            drawn = old * (length * scale), classes + owner
            others = drawn[0], torch.full_like(owner, classes)
        own = targets.clamp(max=classes)
        if wide is None:
            value, logits = told_apart(head, features, own, others)
        else:
            value, _ = told_apart(wide, features, targets, drawn)
            beside, logits = told_apart(head, features.detach(), own, others)
            value = value + beside
        right = int((logits.argmax(1) == own).sum())
        if teacher is not None:
            with torch.no_grad():
                before = teacher(given)
            value = value + config.distil * feature_distance(found.float(), before.float())
        return value, right

    network.train()
    parameters = [*network.adapter_parameters(), *head.parameters()]
    parameters += wide.parameters() if wide is not None else []
    history = fit(parameters, loss, len(images), config, seed, on_epoch, progress)
    network.eval()
    head.weight.data *= scale
    trained_head = {name: value.detach().cpu() for name, value in head.state_dict().items()}
    return TrainedAdapter(network.adapter_state(), trained_head, history)


def _inputs(
    prefix: nn.Module, views: list[Tensor], config: TrainConfig, seed: int, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    """What the suffix takes, from the numbers of views (B,) and indices of images (B,)."""
    if config.brightness:
        generator = torch.Generator().manual_seed(derive_seed(seed, "brightness"))
        return run_anew(prefix, views, config.brightness, generator, device)
    with autocast(config, device):
        kept = run_once(prefix, views, config.cache_mb * 2**20, config.batch_size, device)
    return lambda view, batch: kept[view, batch].to(device)


def _head(features: int, outputs: int, seed: int) -> nn.Linear:
    head = nn.Linear(features, outputs)
    head.load_state_dict(new_head(features, outputs, seed))
    return head


def fit(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[Tensor, Tensor], tuple[Tensor, int]],
    count: int,
    config: TrainConfig,
    seed: int,
    on_epoch: Callable[[int, Epoch], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    rate: str = "learning_rate",
) -> list[Epoch]:
    """The training loop of everything that is trained step by step.

    Each epoch visits every image once, in a random order, each in one of its views at random
    (`dynammo.network.features.views_of`). With SGD the learning rate drops tenfold at each
    milestone; with AdamW it rises to the one given and falls to zero in one cycle (arXiv
    1708.07120).

    Args:
        parameters: what is trained.
        loss: from indices (B,) of images and the numbers of their views (B,), to
            their mean loss and how many of them are predicted right.
        count: of images.
        config: epochs, learning rate, and so on.
        seed: of the order of the images and the flips.
        on_epoch: called after each epoch with its number (from 1) and means.
        progress: called after each batch with (batches done, batches in all epochs).
        rate: the setting that holds the learning rate.

    Returns:
        The means of each epoch.

    Raises:
        DynammoError: the loss or a weight became infinite or NaN, or the loss ended above ten times
            what the first batch had before training (or above 10, if that was below 1).
    """
    views = count_views(config.flip, config.turns)
    per_epoch = len(_batches(count, config.batch_size, torch.Generator()))
    optimiser, schedule = _optimiser(parameters, config, getattr(config, rate), per_epoch)
    generator = torch.Generator().manual_seed(seed)
    precision = autocast(config, parameters[0].device)
    history: list[Epoch] = []
    first = math.nan
    for number in range(1, config.epochs + 1):
        loss_sum, right = 0.0, 0
        batches = _batches(count, config.batch_size, generator)
        for index, batch in enumerate(batches, start=1):
            view = torch.zeros_like(batch)
            if views > 1:
                view = views - 1 - (torch.rand(len(batch), generator=generator) * views).long()
            optimiser.zero_grad()
            with precision:
                value, right_here = loss(batch, view)
            if math.isnan(first):
                first = value.item()
            value.backward()
            loss_sum += value.item() * len(batch)
            right += right_here
            optimiser.step()
            schedule.step()
            if progress is not None:
                progress((number - 1) * len(batches) + index, config.epochs * len(batches))
        history.append(Epoch(loss_sum / count, right / count))
        wrong = None if math.isfinite(loss_sum) else f"the loss is {loss_sum}"
        # The last batch's loss is from before the step that it leads to.
        if wrong is None and not all(bool(p.isfinite().all()) for p in parameters):
            wrong = "weights are infinite or NaN"
        # Finite, and yet worse by far than what training began with: it would answer at chance.
        limit = _DIVERGED * max(first, 1.0)
        if wrong is None and number == config.epochs and history[-1].loss > limit:
            wrong = f"the loss is {history[-1].loss:.3g}, where it was {first:.3g} before training,"
        if wrong is not None:
            raise DynammoError(
                f"{wrong} in epoch {number}: train.{rate} {getattr(config, rate)} is too high for "
                "these images"
            )
        if on_epoch is not None:
            on_epoch(number, history[-1])
    return history


def _optimiser(
    parameters: Sequence[nn.Parameter], config: TrainConfig, rate: float, per_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimiser and its schedule, which takes a step after every one of `per_epoch` batches."""
    if config.optimiser == "adamw":
        adam = torch.optim.AdamW(parameters, lr=rate, weight_decay=config.weight_decay)
        steps = config.epochs * per_epoch
        return adam, torch.optim.lr_scheduler.OneCycleLR(adam, rate, total_steps=steps)
    sgd = torch.optim.SGD(
        parameters, lr=rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
    # Never before the first epoch: a run of one epoch would be at a tenth from the start.
    drops = [per_epoch * max(1, round(part * config.epochs)) for part in config.milestones]
    return sgd, torch.optim.lr_scheduler.MultiStepLR(sgd, drops, gamma=0.1)


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """In which forward passes compute as `config.precision` says; parameters stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")


def _batches(count: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """A random order cut into batches; a lone last image joins the batch before it, because
    BatchNorm cannot normalise one sample.
    """
    batches = list(torch.randperm(count, generator=generator).split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
