"""Train one adapter a task: stage 1 of the method."""

from __future__ import annotations

import torch
from prefect import get_run_logger

from dynammo.checkpoint import Ref
from dynammo.config import AdapterConfig, ArchitectureConfig, ImageConfig, TrainConfig
from dynammo.heads.statistics import ClassStatistics, every_fifth
from dynammo.network.network import build_network
from dynammo.seeds import derive_seed
from dynammo.training.earlier import Earlier, GaussianReplay
from dynammo.training.loop import train_adapter as train
from tasks.support.caching import step
from tasks.support.images import Images, remembered
from tasks.support.networks import load_network
from tasks.support.progress import epoch_lines, progress_bar
from tasks.support.workspace import Classes, Context, Trained, provenance


@step("train adapter", "dynammo.training.loop", task_run_name="train adapter {context.label}")
def train_adapter(
    seed: int,
    architecture: ArchitectureConfig,
    image: ImageConfig,
    adapter: AdapterConfig,
    training: TrainConfig,
    number: int,
    classes: Classes,
    others: list[int],
    backbone: Ref,
    previous: Ref | None,
    exemplars: Ref | None,
    merged: Ref | None,
    statistics: Ref | None,
    held_out: bool,
    context: Context,
) -> Trained:
    """Stage 1 for one task: its images, and exemplars of all other classes as "others".

    Args:
        seed: the experiment's.
        architecture: of the backbone.
        image: size of the images.
        adapter: kind of adapter.
        training: how to train it.
        number: of the task, from 1.
        classes: the task's.
        others: indices, in order of arrival, of the remembered classes that are not among them.
        backbone: checkpoint of the frozen network.
        previous: adapter to start from; none starts anew.
        exemplars: the memory after the task before.
        merged: the adapter merged after the task before, which features are held to; none if they
            are not.
        statistics: under it, of all classes so far; none if nothing is drawn from them.
        held_out: leave every fifth image of each class out.
        context: places.
    """
    store, images = context.checkpoints, Images.of(context)
    pixels, _ = images.load("train", classes)
    labels = images.labels("train", classes["names"])
    if held_out:
        trained_on = ~every_fifth(labels, images.groups("train", classes["names"]))
        pixels, labels = pixels[trained_on], labels[trained_on]
    if exemplars is not None:
        kept, owner = remembered(exemplars, context)
        old = torch.isin(owner, torch.tensor(others))
        pixels = torch.cat([pixels, kept[old]])
        of = [others.index(known) for known in owner[old].tolist()]
        places = torch.tensor(of, dtype=torch.int64)
        labels = torch.cat([labels, len(classes["names"]) + places])
    get_run_logger().info(
        "%d images of %s, %d outputs",
        len(pixels),
        ", ".join(classes["names"]),
        len(classes["names"]) + 1,
    )
    network = build_network(
        architecture,
        store.load(backbone),
        image.form,
        adapter,
        derive_seed(seed, "adapter", number),
    )
    if previous is not None:
        network.load_adapter_state(store.load(previous))
    known = None
    if statistics is not None and others:
        found = ClassStatistics.of(store.load(statistics))
        known = GaussianReplay(found.means[others], found.covariance)
    teacher = None
    if merged is not None:
        teacher = load_network(architecture, image, adapter, backbone, merged, context)
    with progress_bar(f"train adapter {context.label}", "batch") as progress:
        trained = train(
            network.to(context.device),
            pixels,
            labels,
            len(classes["names"]),
            training.model_copy(update={"cache_mb": context.cache_mb}),
            derive_seed(seed, "train", number),
            on_epoch=epoch_lines(training.epochs),
            progress=progress,
            earlier=Earlier(teacher, known),
        )
    meta = provenance(
        architecture,
        image,
        adapter,
        training,
        config={"seed": seed, "held_out": held_out},
        task=number,
        classes=classes["names"],
        images=classes["hash"],
        backbone=backbone,
        previous=previous,
        exemplars=exemplars,
        merged=merged,
        statistics=statistics,
    )
    return {
        "adapter": store.save("adapter", trained.adapter, meta),
        "head": store.save("task-head", trained.head, meta),
        "history": [list(epoch) for epoch in trained.history],
    }
