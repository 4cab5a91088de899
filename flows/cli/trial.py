"""The labelled images by which `dynammo export-model` makes and judges a smaller model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynammo.deploy.export import model_folder
from dynammo.deploy.manifest import Manifest, parse_manifest
from dynammo.deploy.trial import Labelled, Trial, load_trial
from dynammo.errors import CheckpointError, DataError
from dynammo.learner.folder import LearnerFolder
from dynammo.learner.settings import DEPLOYED
from flows.cli.main import percent
from tasks.support.images import remembered, targets_of
from tasks.support.stage import known_classes
from tasks.support.version import config_of, context_in, read_version


def trial_of(model: Path, labelled: Path | None) -> Trial:
    """The images by which a smaller model is made, and those by which it is judged.

    Args:
        model: its folder, or one with a folder `model`.
        labelled: a folder or CSV; none: `model` is a learner's folder, whose memory makes the
            smaller model and whose kept test images judge it.

    Raises:
        DataError: there are no such images, or too few.
        CheckpointError: no usable model, or a damaged learner.
    """
    about = described(model)
    if labelled is not None:
        return load_trial(labelled, about.classes, about.form)
    homes = [own for own in (model, model.parent) if (own / "learner.json").is_file()]
    if not homes:
        raise DataError(
            "a smaller model needs labelled images: give --labelled, or a learner's folder"
        )
    return _kept(homes[0].absolute(), about.classes)


def described(model: Path) -> Manifest:
    """What a model says of itself. Raises `CheckpointError`: it is no usable model."""
    try:
        return parse_manifest((model_folder(model) / "model.json").read_bytes())
    except OSError as error:
        raise CheckpointError(f"{model} holds no usable model: {error.strerror}") from None


def _kept(learner: Path, classes: Sequence[str]) -> Trial:
    """The champion's memory and kept test images, as `trial_of` says."""
    folder = LearnerFolder(learner.parent, learner.name)
    version = read_version(folder, folder.pointer()["champion"])
    context = context_in(folder, config_of(version))
    memory = version["stage"]["methods"][DEPLOYED]["exemplars"]
    tests = [part["kept"] for part in version["tests"]]
    if memory is None or not tests or any(kept["images"] is None for kept in tests):
        raise DataError(f"{learner} keeps no images, or no test images: give --labelled")
    images, owner = remembered(memory, context)
    known = known_classes(version["stage"])
    place = np.array([list(classes).index(name) for name in known])
    judged = [
        context.checkpoints.load(kept["images"])["images"] for kept in tests if kept["images"]
    ]
    targets = targets_of(tests, list(classes), context)
    return Trial(
        _numbered(images.numpy(), place[owner.numpy()], "remembered"),
        _numbered(torch.cat(judged).numpy(), torch.cat(targets).numpy(), "test image"),
    )


def _numbered(images: Any, targets: Any, what: str) -> Labelled:
    """Kept images have no names."""
    return Labelled(images, targets, [f"{what} {number}" for number in range(len(targets))])


def costs(report: Mapping[str, Any]) -> Iterator[str]:
    """A line for each way in which an export made the model smaller."""
    for way in ("pruned", "int8", "both"):
        if (made := report.get(way)) is None:
            continue
        recall, ece, ms = (
            made[key] for key in ("mean_class_recall", "ece", "ms_one_image_one_thread")
        )
        what = ""
        if way == "pruned":
            share = made["gmacs"]["pruned"] / made["gmacs"]["float"]
            what = f"{percent(share)} % of the multiplications left; "
        if way == "int8":
            what = (
                f"{made['float_convolutions']} of {made['convolutions']} convolutions left float; "
            )
        yield (
            f"{way}, on {made['images']} labelled images: mean class recall "
            f"{percent(recall['before'])} to {percent(recall['after'])}, "
            f"{len(made['negative_flips'])} right before and wrong now, "
            f"{made['positive_flips']} the other way round; calibration error "
            f"{percent(ece['before'])} to {percent(ece['after'])}; {what}one image, one thread: "
            f"{ms['float']:.1f} ms to {ms[way]:.1f}. All of it is in export.json."
        )
