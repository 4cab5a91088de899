"""What a site does with its own images, and what of it crosses. Flower is in `app`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dynammo.clinical import Counts
from dynammo.config import Config
from dynammo.data.checks import check_image_set
from dynammo.data.samples import ImageSet, Sample
from dynammo.data.store import ImageStore, build_store
from dynammo.device import choose_device
from dynammo.errors import DataError
from dynammo.federated.columns import SiteColumns, columns_told, packed
from dynammo.federated.noise import noise_scale, noisy_classes
from dynammo.heads.discriminant import calibration_temperature
from dynammo.heads.scaling import power_normalise
from dynammo.heads.statistics import ClassStatistics, measure_classes
from dynammo.learner.batch import batch_columns, load_batch
from dynammo.learner.ledger import Ledger
from dynammo.methods import METHODS
from dynammo.network.backbones import pretrained_weights
from dynammo.network.features import augmented_views
from dynammo.network.network import Network, build_network
from dynammo.seeds import derive_seed
from dynammo.state import State
from dynammo.training.loop import train_adapter


class SiteBatch(NamedTuple):
    """A site's images of the classes that may cross, and how many patients each class has.

    `held_back`: likewise of those that have too few, and stay. `columns`: what else is told of the
    patients; `absent`: columns that the learner asks for, and that the site's listing lacks.
    """

    images: ImageSet
    patients: dict[str, int]
    held_back: dict[str, int]
    columns: SiteColumns
    absent: list[str]

    @property
    def training(self) -> tuple[Sample, ...]:
        """What is learnt from, class by class."""
        return self.images.select("train", sorted(self.patients))


class Measured(NamedTuple):
    """Under a network: the site's class statistics, and the temperature at which a discriminant of
    these alone is as right as it says (`dynammo.heads.discriminant`); 1: none could be measured.
    """

    statistics: ClassStatistics
    temperature: float


class Crossing(NamedTuple):
    """A tensor that leaves a site: in which message, its name, shape, type and bytes, and how many
    patients at least a number in it is of, beside those that are 0.
    """

    message: str
    tensor: str
    shape: tuple[int, ...]
    kind: str
    bytes: int
    fewest: int


def read_site(path: Path, config: Config, min_patients: int) -> SiteBatch:
    """List a site's images, without the classes that have too few patients.

    Args:
        path: a batch (`dynammo.learner.batch`).
        config: of the learner that is made.
        min_patients: k; of a class with images without a group, each image counts as a patient.

    Raises:
        DataError: of the batch; no class has k patients; a clinical number is none.
    """
    header, asked = batch_columns(path), config.clinical
    there_are = asked.model_copy(
        update={
            "categories": [name for name in asked.categories if name in header],
            "numbers": [name for name in asked.numbers if name in header],
        }
    )
    images, _ = load_batch(
        path,
        config.data.test_share,
        Ledger.empty(),
        "00" * 32,
        clinical=there_are,
        volumes=config.image.form.volumes,
    )
    check_image_set(images, config.data.repeats)
    counts = {name: _patients(images.select("train", [name])) for name in images.classes}
    there = {name: count for name, count in counts.items() if count >= min_patients}
    if not there:
        raise DataError(f"{path}: no class has {min_patients} patients; nothing would be sent")
    kept = tuple(sample for sample in images.samples if sample.label in there)
    rest = {name: count for name, count in counts.items() if name not in there}
    learnt, names = ImageSet(images.root, kept), sorted(there)
    columns = columns_told(learnt.select("train", names), names, there_are, min_patients)
    absent = [name for name in asked.names if name not in header]
    return SiteBatch(learnt, there, rest, columns, absent)


def train_site(
    config: Config, number: int, batch: SiteBatch, turn: int = 1, merged: State | None = None
) -> State:
    """The site's adapter: what `learn` trains of a batch of that number from a fresh one; in later
    rounds of training, from what the sites' adapters were merged to.

    Args:
        config: of the learner.
        number: of the batch, from 1; sets the seeds.
        batch: of the site.
        turn: the round of training, from 1; sets the order of the images.
        merged: where training starts; none: at a fresh adapter.

    Raises:
        CheckpointError: the merged adapter does not fit.
    """
    seed = derive_seed(config.seed, "adapter", number)
    network = _network(config, seed)
    if merged is not None:
        network.load_adapter_state(merged)
    network.to(choose_device(config.device))
    pixels, labels = _load(config, batch)
    own = derive_seed(config.seed, "train", number, *([turn] if turn > 1 else []))
    settings = config.train.of_adapters
    return train_adapter(network, pixels, labels, len(batch.patients), settings, own).adapter


def measure_site(
    config: Config, adapter: State, batch: SiteBatch, epsilon: float = math.inf
) -> dict[str, Measured]:
    """What the site measures for each method: under the merged adapter, or the bare backbone.

    Args:
        config: of the learner.
        adapter: the merged one.
        batch: of the site.
        epsilon: of all statistics together (`dynammo.federated.noise`); infinite: no noise. With
            noise no temperature is measured.

    Raises:
        DataError: epsilon is not above 0.
    """
    if not epsilon > 0:
        raise DataError(f"epsilon must be above 0, got {epsilon}")
    pixels, labels = _load(config, batch)
    head, found = config.head, {}
    patients = [sample.group or sample.sha256 for sample in batch.training]
    scale = noise_scale(epsilon, math.sqrt(3 * len(config.methods)))
    for name in config.methods:
        network = adapted_network(config, adapter if METHODS[name].shared_adapters else None)
        views = augmented_views(
            network.to(choose_device(config.device)), pixels, head.flip, head.turns
        )
        features = power_normalise(views, head.power)
        if scale:
            noisy = noisy_classes(
                *(features, labels, patients, len(batch.patients), head.pooling, scale),
                np.random.default_rng(),  # of the system's entropy
            )
            found[name] = Measured(noisy, 1.0)
            continue
        own = measure_classes(features, labels, len(batch.patients), "classes").pooled(head.pooling)
        temperature = calibration_temperature(own, features, labels, head)
        found[name] = Measured(own, temperature)
    return found


def columns_sent(batch: SiteBatch, epsilon: float) -> Counts | None:
    """The counts of columns that leave a site, if any do: noise is not added to them, so that where
    it is asked for (a finite epsilon) they stay.
    """
    return batch.columns.counts if batch.columns.names and math.isinf(epsilon) else None


def crossings(config: Config, batch: SiteBatch, epsilon: float = math.inf) -> list[Crossing]:
    """All tensors that a site will send; nothing is computed on its images."""
    network, fewest = _network(config, 0), min(batch.patients.values())
    everybody = len({sample.group or sample.sha256 for sample in batch.training})
    rows = [
        _crossing("train", name, value, everybody)
        for name, value in network.adapter_state().items()
    ]
    classes, size = len(batch.patients), network.feature_size
    own = () if config.head.pooling == "samples" else (classes,)
    shapes = {
        "means": (classes, size),
        "scatter": (*own, size * (size + 1) // 2),
        "counts": (classes,),
    }
    rows += [
        _crossing("measure", f"{method}.{name}", torch.empty(shape, dtype=torch.float64), fewest)
        for method in config.methods
        for name, shape in shapes.items()
    ]
    counts = columns_sent(batch, epsilon)
    tables = packed(counts)[0] if counts else {}
    return rows + [
        _crossing("measure", f"columns.{name}", value, batch.columns.fewest[name])
        for name, value in tables.items()
    ]


def backbone_hash(config: Config) -> str:
    """Hash of the frozen network's weights: what all sites must have in common."""
    weights = pretrained_weights(config.backbone, derive_seed(config.seed, "backbone"))
    return state_hash(weights)


def state_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256, hex, over names, types, shapes and contents, by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _patients(samples: tuple[Sample, ...]) -> int:
    groups = {sample.group for sample in samples}
    return len(samples) if None in groups else len(groups)


def _load(config: Config, batch: SiteBatch) -> tuple[Tensor, Tensor]:
    """Training images (N, 3, S, S) uint8 and class indices (N,)."""
    names = sorted(batch.patients)
    labels = torch.tensor([names.index(sample.label) for sample in batch.training]).long()
    return load_pixels(config, batch.images, batch.training), labels


def load_pixels(config: Config, images: ImageSet, samples: tuple[Sample, ...]) -> Tensor:
    """Some of a site's images (N, 3, S, S) uint8; no decoded copy stays."""
    with TemporaryDirectory(prefix="dynammo-site-") as folder:
        path = build_store(images, config.image.form, Path(folder), repeated=config.data.repeats)
        return ImageStore.open(path, verify=False).load(samples)


def adapted_network(config: Config, adapter: State | None) -> Network:
    """The network with an adapter, or bare."""
    network = _network(config, None if adapter is None else 0)
    if adapter is not None:
        network.load_adapter_state(adapter)
    return network


def _network(config: Config, seed: int | None) -> Network:
    """With fresh adapters drawn from a seed, or bare."""
    weights = pretrained_weights(config.backbone, derive_seed(config.seed, "backbone"))
    adapter = None if seed is None else config.adapter
    return build_network(
        config.backbone.architecture, weights, config.image.form, adapter, seed or 0
    )


def _crossing(message: str, name: str, value: Tensor, fewest: int) -> Crossing:
    kind = str(value.dtype).removeprefix("torch.")
    return Crossing(message, name, tuple(value.shape), kind, value.nbytes, fewest)
