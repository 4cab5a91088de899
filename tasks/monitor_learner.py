"""Look at new images with a learner's version: are they as those that it was measured on?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from prefect import task
from torch import Tensor

from dynammo.checkpoint import write_atomically
from dynammo.config import Config
from dynammo.data.formats.pictures import load_image
from dynammo.data.marks import mark
from dynammo.data.samples import Sample, list_samples
from dynammo.data.sources import csv_manifest
from dynammo.data.sources.folder import image_files
from dynammo.errors import DataError
from dynammo.evaluation import appearance
from dynammo.evaluation.metrics import Floats, Integers
from dynammo.evaluation.monitoring import Seen, monitor
from dynammo.evaluation.strangeness import strangeness
from dynammo.heads.linear import unified_scores
from dynammo.heads.mahalanobis import residuals
from dynammo.heads.scaling import head_features
from dynammo.heads.statistics import ClassStatistics
from dynammo.learner.folder import LearnerFolder, now
from dynammo.learner.settings import DEPLOYED
from dynammo.network.features import extract_features
from dynammo.network.network import Network
from dynammo.state import State
from tasks.evaluate import head_inputs
from tasks.judge_version import tested_answers
from tasks.publish_version import registered_versions
from tasks.report_evidently import evidently_report, python_with_evidently
from tasks.support.mlflow.runs import log_monitoring
from tasks.support.networks import load_network
from tasks.support.progress import progress_bar
from tasks.support.stage import known_classes
from tasks.support.version import Version, config_of, context_in, ledger_of, read_version
from tasks.support.workspace import Context

_AT_A_TIME = 64


class Arrived(NamedTuple):
    """Images as they come: `root`, and the `samples` that nobody has learnt from or measured with;
    how many are `known` and so left out.
    """

    root: Path
    samples: list[Sample]
    known: int


@task(name="monitor", task_run_name="monitor version {number}")
def monitor_version(
    folder_path: str,
    number: int,
    images: str,
    false_alarms: float,
    window: dict[str, int] | None = None,
    evidently: str | None = None,
) -> dict[str, Any]:
    """Check new images against those that a version was measured on.

    Args:
        folder_path: of the learner.
        number: of the version.
        images: a folder, or a CSV with `file` and, if wanted, `class` and `group`.
        false_alarms: see `dynammo.evaluation.monitoring.monitor`.
        window: likewise.
        evidently: file for Evidently's report on the same images; none if not wanted.

    Returns:
        `learner`, `version`, `at`, `images`, `reference_images`, `known` (left out), `unreadable`,
        `answers` and `reference_answers` by class, `unknown_classes` (images by label that the
        version has no class for), `false_alarms`, `checks` and the names of `alarms`.

    Raises:
        DataError: no image is left, or no class statistics or test images are kept.
        DynammoError: Evidently's report is wanted and cannot be made.
    """
    # Looked for before minutes are spent on images.
    python = "" if evidently is None else python_with_evidently()
    path = Path(folder_path)
    folder = LearnerFolder(path.parent, path.name)
    version = read_version(folder, number)
    config = config_of(version)
    context, classes = context_in(folder, config), known_classes(version["stage"])
    reference = held_out(config, version, context)
    arrived = arrive(Path(images), folder, version, config.image.form.volumes)
    new, unreadable = look(config, version, arrived, context)
    checks = monitor(reference, new, classes, false_alarms=false_alarms, window=window)
    if evidently is not None:
        write_atomically(Path(evidently), evidently_report(python, reference, new, classes))
    labels = Counter(sample.label for sample in arrived.samples)
    return {
        "format": 1,
        "learner": folder.identity,
        "version": number,
        "at": now(),
        "images": len(new.answers),
        "reference_images": len(reference.answers),
        "known": arrived.known,
        "unreadable": unreadable,
        "answers": _counts(new, classes),
        "reference_answers": window or _counts(reference, classes),
        "unknown_classes": {
            name: count for name, count in labels.items() if name and name not in classes
        },
        "false_alarms": false_alarms,
        "checks": checks,
        "alarms": [check["name"] for check in checks if check["alarm"]],
    }


@task(name="record monitoring", retries=2, retry_delay_seconds=3)
def record_monitoring(folder_path: str, found: dict[str, Any]) -> str | None:
    """Record what `monitor_version` found under the served version in MLflow.

    Args:
        folder_path: of the learner.
        found: on new images.

    Returns:
        The run's id; none where the version is not registered.

    Raises:
        TrackingError: MLflow does not answer, or refuses.
    """
    path = Path(folder_path)
    folder = LearnerFolder(path.parent, path.name)
    if (registered := registered_versions(folder).get(found["version"])) is None:
        return None
    return log_monitoring(config_of(read_version(folder, found["version"])), registered, found)


def held_out(config: Config, version: Version, context: Context) -> Seen:
    """The test images that a version was measured on, of the classes that it knows.

    Raises:
        DataError: they, or class statistics, are not kept.
    """
    predictions, groups, _ = tested_answers(version, context)
    own, store = version["stage"]["methods"][DEPLOYED], context.checkpoints
    if predictions is None or own["statistics"] is None:
        raise DataError(
            "nothing to compare with: this version keeps no class statistics or no test images "
            "(retention.test=nothing, or they were purged)"
        )
    network, tests = _network(config, version, context), [test["kept"] for test in version["tests"]]
    kept = [store.load(test["images"])["images"] for test in tests if test["images"] is not None]
    parts = [torch.zeros(0, network.feature_size), *(extract_features(network, x) for x in kept)]
    sizes = [len(store.load(test["labels"])["labels"]) for test in tests]
    head = store.load(own["heads"][0])
    features = head_inputs(DEPLOYED, torch.cat(parts), head, tests, sizes, context)
    known = predictions.targets < predictions.classes
    assert own["evaluated"] is not None and own["evaluated"]["predictions"] is not None
    saved = store.load(own["evaluated"]["predictions"])
    return _seen(
        features[torch.from_numpy(known)],
        head,
        ClassStatistics.of(store.load(own["statistics"])),
        config,
        saved["appearance"].numpy()[known] if "appearance" in saved else None,
        predictions.targets[known],
        [group for group, mine in zip(groups, known, strict=True) if mine],
    )


def arrive(path: Path, folder: LearnerFolder, version: Version, volumes: bool = False) -> Arrived:
    """List new images, less those that the version has seen: they are no test of anything.

    Raises:
        DataError: there are none; of a CSV see `dynammo.data.sources.csv_manifest.read`.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_file() or (path / "manifest.csv").is_file():
        listed = csv_manifest.read(path, default_split="test", labelled=False)
    else:
        rows: list[tuple[str, str, str, str | None]] = [
            (file.relative_to(path).as_posix(), "test", "", None)
            for file in image_files(path, volumes)
        ]
        listed = list_samples(path, rows)
    seen, _ = ledger_of(folder, version).seen()
    fresh = [own for own in listed.samples if mark(folder.key, own.sha256) not in seen]
    if not fresh:
        raise DataError(f"{path}: all {len(listed.samples)} images are known to the learner")
    return Arrived(listed.root, fresh, len(listed.samples) - len(fresh))


def look(config: Config, version: Version, arrived: Arrived, context: Context) -> tuple[Seen, int]:
    """What a version makes of new images, and how many cannot be read.

    Raises:
        DataError: none can be read.
    """
    own, store = version["stage"]["methods"][DEPLOYED], context.checkpoints
    assert own["statistics"] is not None
    network = _network(config, version, context)
    head, statistics = (
        store.load(own["heads"][0]),
        ClassStatistics.of(store.load(own["statistics"])),
    )
    index = {name: place for place, name in enumerate(known_classes(version["stage"]))}
    parts, looks, targets, groups, problems = [], [], [], [], []
    with progress_bar("look", "image") as progress:
        for start in range(0, len(arrived.samples), _AT_A_TIME):
            pixels = []
            for sample in arrived.samples[start : start + _AT_A_TIME]:
                try:
                    pixels.append(load_image(arrived.root / sample.file, config.image.form))
                except DataError as error:
                    problems.append(str(error))
                    continue
                targets.append(index.get(sample.label, -1))
                groups.append(mark(context.key, sample.group).hex() if sample.group else None)
            if pixels:
                looks.append(appearance.measure(np.stack(pixels)))
                batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
                parts.append(head_features(extract_features(network, batch), head))
            progress(start + len(pixels), len(arrived.samples))
    if not parts:
        raise DataError(problems)
    found = torch.cat(parts), head, statistics, config, np.concatenate(looks)
    return _seen(*found, np.array(targets), groups), len(problems)


def _network(config: Config, version: Version, context: Context) -> Network:
    adapter = version["stage"]["methods"][DEPLOYED]["adapter"]
    return load_network(
        config.backbone, config.image, config.adapter, version["backbone"], adapter, context
    )


def _seen(
    features: Tensor,
    head: State,
    statistics: ClassStatistics,
    config: Config,
    looks: Floats | None,
    targets: Integers,
    groups: list[str | None],
) -> Seen:
    """By the images alone: what may be known beside them is not at hand for new ones."""
    moved = residuals(features, statistics, config.head.shrinkage).numpy()
    plain = {name: head[name] for name in ("weight", "bias")}
    scores = unified_scores(features, plain)
    return Seen(
        moved,
        np.square(moved).sum(axis=1),
        strangeness(scores.probabilities.numpy()),
        looks,
        scores.predicted.numpy(),
        targets,
        groups,
    )


def _counts(seen: Seen, classes: list[str]) -> dict[str, int]:
    counts = np.bincount(seen.answers, minlength=len(classes)).tolist()
    return dict(zip(classes, counts, strict=True))
