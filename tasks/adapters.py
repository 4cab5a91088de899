"""Prepare the backbone, fit its BatchNorm to the images; train one adapter a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from prefect import get_run_logger
from torch import Tensor

from dynammo.checkpoint import Ref
from dynammo.config import BackboneConfig, Config, TrainConfig
from dynammo.data.samples import hash_file
from dynammo.errors import DynammoError, WeightsError
from dynammo.network.backbones import pretrained_weights
from dynammo.network.batch_norm import renormalise
from dynammo.network.network import Network, build_network
from dynammo.processes import Machines
from dynammo.seeds import derive_seed
from dynammo.training.loop import check_shares
from dynammo.training.loop import train_adapter as train
from tasks.machines import Work, invite
from tasks.support.caching import step
from tasks.support.images import Images
from tasks.support.networks import load_network
from tasks.support.progress import epoch_lines, progress_bar
from tasks.support.workspace import CHECKPOINTS, Classes, Context, provenance


class Trained(TypedDict):
    """What `train_adapter` leaves: two checkpoints, and (loss, accuracy) of each epoch."""

    adapter: Ref
    head: Ref
    history: list[list[float]]


def weights_hash(config: BackboneConfig) -> str | None:
    """SHA-256 of the local weights file, where one is configured.

    Raises:
        WeightsError: it cannot be read.
    """
    if config.weights is None:
        return None
    try:
        return hash_file(Path(config.weights))
    except OSError as error:
        raise WeightsError(f"cannot read {config.weights}: {error.strerror}") from None


def weights_settings(config: Config) -> dict[str, Any]:
    """What decides the pretrained weights: the same for other positions and levels."""
    backbone = config.backbone.model_dump(mode="json", include={"name", "pretrained", "weights"})
    return {"seed": config.seed, "backbone": backbone}


@step(
    "prepare backbone",
    "dynammo.network.backbones",
    retries=2,  # the weights may come over a network
    retry_delay_seconds=5,
    task_run_name="prepare backbone {settings[backbone][name]}",
)
def prepare_backbone(settings: dict[str, Any], weights_hash: str | None, context: Context) -> Ref:
    """Fetch the pretrained weights once and keep them as a checkpoint of this workspace.

    Args:
        settings: see `weights_settings`.
        weights_hash: SHA-256 of the local weights file, where one is configured.
        context: places.
    """
    config = Config.model_validate(settings)
    weights = pretrained_weights(config.backbone, derive_seed(config.seed, "backbone"))
    meta = provenance(settings, weights_file=weights_hash)
    return CHECKPOINTS.save("backbone", weights, meta)


@step("renormalise backbone", "dynammo.network.batch_norm", task_run_name="renormalise backbone")
def renormalise_backbone(
    settings: dict[str, Any], share: float, classes: Classes, backbone: Ref, context: Context
) -> Ref:
    """Move the backbone's BatchNorm statistics towards those of the first task's images.

    Args:
        settings: sections seed, backbone and image.
        share: `backbone.renormalise`.
        classes: the first task's.
        backbone: checkpoint of the network as pretrained.
        context: places.
    """
    config = Config.model_validate(settings)
    network = load_network(config, backbone, None, context["device"])
    pixels, _ = Images.of(context).load("train", classes)
    seed = derive_seed(config.seed, "renormalise")
    weights = renormalise(network, pixels, share, seed)
    meta = provenance(
        {**settings, "share": share},
        classes=classes["names"],
        images=classes["hash"],
        backbone=backbone["sha256"],
    )
    return CHECKPOINTS.save("backbone", weights, meta)


@step("train adapter", "dynammo.training.loop", task_run_name="train adapter {context[label]}")
def train_adapter(
    settings: dict[str, Any],
    number: int,
    classes: Classes,
    backbone: Ref,
    previous: Ref | None,
    exemplars: Ref | None,
    context: Context,
) -> Trained:
    """Stage 1 for one task: its images, and exemplars of all earlier classes as "others".

    Args:
        settings: sections seed, backbone, image, adapter and train.
        number: of the task, from 1.
        classes: the task's.
        backbone: checkpoint of the frozen network.
        previous: adapter to start from; none starts anew.
        exemplars: the memory after the task before.
        context: places.
    """
    logger = get_run_logger()
    config = Config.model_validate(settings)
    arguments: dict[str, Any] = {
        "settings": settings,
        "number": number,
        "classes": classes,
        "backbone": backbone,
        "previous": previous,
        "exemplars": exemplars,
        "context": context,
    }
    lesson = _lesson(**arguments)
    logger.info(
        "%d images of %s, %d outputs",
        len(lesson.images),
        ", ".join(classes["names"]),
        len(classes["names"]) + 1,
    )
    processes = config.train.machines * config.train.processes
    check_shares(lesson.network, len(lesson.images), processes)  # before others are asked to come
    with (
        invite(config.train.machines, __name__, arguments, logger.info) as machines,
        progress_bar(f"train adapter {context['label']}", "batch") as progress,
    ):
        trained = train(
            *lesson,
            on_epoch=epoch_lines(config.train.epochs),
            progress=progress,
            machines=machines,
        )
    meta = provenance(
        settings,
        task=number,
        classes=classes["names"],
        images=classes["hash"],
        backbone=backbone["sha256"],
        previous=previous and previous["sha256"],
        exemplars=exemplars and exemplars["sha256"],
    )
    return {
        "adapter": CHECKPOINTS.save("adapter", trained.adapter, meta),
        "head": CHECKPOINTS.save("task-head", trained.head, meta),
        "history": [list(epoch) for epoch in trained.history],
    }


def help_train(arguments: dict[str, Any]) -> Work:
    """What another machine does while `train_adapter` runs on one: train its share.

    Args:
        arguments: of `train_adapter`.

    Raises:
        DynammoError: this machine lacks the device, the images or a checkpoint.
    """
    context: Context = arguments["context"]
    if context["device"] == "cuda" and not torch.cuda.is_available():
        raise DynammoError("the run trains on CUDA, which is not available here")
    lesson = _lesson(**arguments)

    def work(machines: Machines) -> None:
        with progress_bar(f"train adapter {context['label']}", "batch") as progress:
            train(*lesson, progress=progress, machines=machines)

    return work


class _Lesson(NamedTuple):
    """What `dynammo.training.loop.train_adapter` is given, in its order."""

    network: Network
    images: Tensor
    labels: Tensor
    classes: int
    config: TrainConfig
    seed: int


def _lesson(
    settings: dict[str, Any],
    number: int,
    classes: Classes,
    backbone: Ref,
    previous: Ref | None,
    exemplars: Ref | None,
    context: Context,
) -> _Lesson:
    """Load what `train_adapter` names."""
    config = Config.model_validate(settings)
    images = Images.of(context)
    pixels, _ = images.load("train", classes)
    labels = images.labels("train", classes["names"])
    if exemplars is not None:
        others, _ = images.exemplars(exemplars)
        pixels = torch.cat([pixels, others])
        labels = torch.cat([labels, torch.full((len(others),), len(classes["names"]))])
    network = build_network(
        config.backbone,
        CHECKPOINTS.load(backbone),
        config.image.size,
        config.adapter,
        derive_seed(config.seed, "adapter", number),
    )
    if previous is not None:
        network.load_adapter_state(CHECKPOINTS.load(previous))
    return _Lesson(
        network.to(context["device"]),
        pixels,
        labels,
        len(classes["names"]),
        config.train.model_copy(update={"cache_mb": context["cache_mb"]}),
        derive_seed(config.seed, "train", number),
    )
