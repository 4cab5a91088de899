"""Prepare the backbone: fetch its weights once, and fit its BatchNorm to the images."""

from __future__ import annotations

from pathlib import Path

from dynammo.checkpoint import Ref
from dynammo.config import ArchitectureConfig, BackboneConfig, ImageConfig
from dynammo.data.samples import hash_file
from dynammo.errors import WeightsError
from dynammo.network.backbones import pretrained_weights
from dynammo.network.batch_norm import renormalise
from dynammo.network.network import build_network
from dynammo.seeds import derive_seed
from tasks.support.caching import step
from tasks.support.images import Images
from tasks.support.workspace import Classes, Context, provenance


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


@step(
    "prepare backbone",
    "dynammo.network.backbones",
    retries=2,  # the weights may come over a network
    retry_delay_seconds=5,
    task_run_name="prepare backbone {name}",
)
def prepare_backbone(
    seed: int,
    name: str,
    pretrained: bool,
    weights: str | None,
    weights_hash: str | None,
    context: Context,
) -> Ref:
    """Fetch the pretrained weights once and keep them as a checkpoint.

    Args:
        seed: of the initial weights, where they are random.
        name: of the backbone.
        pretrained: whether its weights are.
        weights: the local file, where one is configured.
        weights_hash: its SHA-256.
        context: places.
    """
    config = BackboneConfig(name=name, pretrained=pretrained, weights=weights)
    found = pretrained_weights(config, derive_seed(seed, "backbone"))
    meta = provenance(config, config={"seed": seed}, weights_file=weights_hash)
    return context.checkpoints.save("backbone", found, meta)


@step("renormalise backbone", "dynammo.network.batch_norm", task_run_name="renormalise backbone")
def renormalise_backbone(
    seed: int,
    architecture: ArchitectureConfig,
    image: ImageConfig,
    share: float,
    classes: Classes,
    backbone: Ref,
    context: Context,
) -> Ref:
    """Move the backbone's BatchNorm statistics towards those of the first task's images.

    Args:
        seed: the experiment's.
        architecture: of the backbone.
        image: size of the images.
        share: `backbone.renormalise`.
        classes: the first task's.
        backbone: checkpoint of the network as pretrained.
        context: places.
    """
    store = context.checkpoints
    network = build_network(architecture, store.load(backbone), image.form).to(context.device)
    pixels, _ = Images.of(context).load("train", classes)
    weights = renormalise(network, pixels, share, derive_seed(seed, "renormalise"))
    meta = provenance(
        architecture,
        image,
        config={"seed": seed, "share": share},
        classes=classes["names"],
        images=classes["hash"],
        backbone=backbone,
    )
    return store.save("backbone", weights, meta)
