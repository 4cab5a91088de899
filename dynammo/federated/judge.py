"""Sites judge a model on their own test images, and tell counts, which add up.

Of each patient one test image of a class is answered: a count is a count of patients, and a share's
interval needs no knowledge of who they are. A class with fewer than k test patients is not told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynammo.clinical import Counts as ColumnCounts
from dynammo.clinical import Evidence, evidence
from dynammo.config import Config, load_config
from dynammo.data.samples import ImageSet, Sample
from dynammo.device import choose_device
from dynammo.errors import DataError
from dynammo.federated.site import SiteBatch, adapted_network, load_pixels
from dynammo.heads.linear import unified_scores
from dynammo.learner.folder import LearnerFolder
from dynammo.learner.settings import DEPLOYED
from dynammo.network.features import extract_features
from dynammo.state import State


class Model(NamedTuple):
    """What answers: its C classes, in order of arrival, the merged adapter, the head, and what
    columns beside the image say, where any are counted.
    """

    classes: list[str]
    adapter: State
    head: State
    clinical: Evidence | None = None


@dataclass
class Counts:
    """What a model answers to test images of its C classes, one of a patient and class.

    `confusion` (C, C) int64, rows true, columns answered; `paired`, by number of another version of
    the learner, (C, 2, 2) int64: of the images of a class that it knows, too, how many it has wrong
    or right (second index 0 or 1) and the new model wrong or right (third).
    """

    confusion: Tensor
    paired: dict[int, Tensor] = field(default_factory=dict)

    def state(self) -> State:
        """For a message."""
        paired = {f"paired-{number}": value for number, value in self.paired.items()}
        return {"confusion": self.confusion, **paired}

    def document(self) -> dict[str, Any]:
        """For JSON."""
        paired = {str(number): value.tolist() for number, value in self.paired.items()}
        return {"confusion": self.confusion.tolist(), "paired": paired}

    @staticmethod
    def of(document: Mapping[str, Any]) -> Counts:
        """What `document` gave."""
        paired = {int(n): torch.tensor(value) for n, value in document["paired"].items()}
        return Counts(torch.tensor(document["confusion"]), paired)

    @staticmethod
    def total(parts: Iterable[Counts]) -> Counts | None:
        """The sum of the sites'; none if there are none."""
        found: Counts | None = None
        for own in parts:
            if found is None:
                found = Counts(own.confusion.clone(), dict(own.paired))
            else:
                found.confusion += own.confusion
                found.paired = {n: value + own.paired[n] for n, value in found.paired.items()}
        return found


def judge_site(
    config: Config, model: Model, others: Mapping[int, Model], batch: SiteBatch, least: int
) -> Counts:
    """Count what a model answers, and beside other versions of it.

    Args:
        config: of the learner.
        model: the new one.
        others: by their number.
        batch: of the site.
        least: k.
    """
    samples = patients_tested(batch.images, model.classes, least)
    count = len(model.classes)
    counts = Counts(
        torch.zeros(count, count).long(), {n: torch.zeros(count, 2, 2).long() for n in others}
    )
    if not samples:
        return counts
    pixels = load_pixels(config, ImageSet(batch.images.root, samples), samples)
    actual = [sample.label for sample in samples]
    now = _answers(config, model, pixels, samples)
    place = {name: index for index, name in enumerate(model.classes)}
    for true, said in zip(actual, now, strict=True):
        counts.confusion[place[true], place[said]] += 1
    for number, other in others.items():
        then = _answers(config, other, pixels, samples)
        for true, old, new in zip(actual, then, now, strict=True):
            if true in other.classes:
                counts.paired[number][place[true], int(old == true), int(new == true)] += 1
    return counts


def patients_tested(images: ImageSet, known: Collection[str], least: int) -> tuple[Sample, ...]:
    """The first test image of each patient and known class, of classes with `least` patients."""
    first: dict[tuple[str, str], Sample] = {}
    for sample in images.samples:
        if sample.split == "test" and sample.label in known:
            first.setdefault((sample.label, sample.group or sample.sha256), sample)
    patients = Counter(label for label, _ in first)
    return tuple(own for (label, _), own in first.items() if patients[label] >= least)


def check_counts(
    state: State, model: Model, others: Mapping[int, Model], told: Collection[str], least: int
) -> Counts:
    """Counts as a site sent them.

    Args:
        state: `Counts.state`.
        model: that was judged.
        others: likewise.
        told: the site's classes.
        least: k.

    Raises:
        DataError: they cannot be.
    """
    count = len(model.classes)
    wanted = {"confusion": (count, count)} | {f"paired-{n}": (count, 2, 2) for n in others}
    form = {name: tuple(value.shape) for name, value in state.items()}
    if form != wanted or any(v.dtype != torch.int64 or (v < 0).any() for v in state.values()):
        raise DataError("counts that cannot be")
    counts = Counts(state["confusion"], {n: state[f"paired-{n}"] for n in others})
    patients = counts.confusion.sum(1)
    for index, name in enumerate(model.classes):
        if patients[index] and (name not in told or patients[index] < least):
            raise DataError("counts of a class that it does not send")
    for number, paired in counts.paired.items():
        both = torch.tensor([name in others[number].classes for name in model.classes])
        right = counts.confusion.diagonal() * both
        if not (
            torch.equal(paired.sum((1, 2)), patients * both)
            and torch.equal(paired[:, :, 1].sum(1), right)
        ):
            raise DataError("paired counts that contradict the others")
    return counts


def compared_models(folder: LearnerFolder) -> dict[int, Model]:
    """The versions that a new one is compared with: the champion, and the one that the plan in
    force authorised. None of a learner that is not there yet.
    """
    if not folder.exists:
        return {}
    pointer = folder.pointer()
    numbers = {pointer["champion"], *(own["authorised"] for own in pointer["plans"][-1:])} - {0}
    found = {}
    for number in sorted(numbers):
        version = folder.version(number)
        stage = version["stage"]
        own = stage["methods"][DEPLOYED]
        counts = (
            folder.store.load_json(stage["clinical"]["counts"]) if "clinical" in stage else None
        )
        found[number] = Model(
            [name for task in stage["tasks"] for name in task],
            folder.store.load(own["adapter"]),
            folder.store.load(own["heads"][0]),
            counts and clinical_evidence(load_config(None, version["config"]), counts),
        )
    return found


def clinical_evidence(config: Config, counts: ColumnCounts) -> Evidence | None:
    """What the columns say that a version goes by; none where it goes by images alone."""
    asked = config.clinical
    return evidence(counts, asked.names, asked.weight) if asked.names else None


def _answers(config: Config, model: Model, pixels: Tensor, samples: Sequence[Sample]) -> list[str]:
    """As the published model answers that is given the columns which the site has."""
    network = adapted_network(config, model.adapter).to(choose_device(config.device))
    scores = unified_scores(extract_features(network, pixels), model.head)
    said = scores.predicted.tolist()
    if model.clinical is not None:
        rows = [dict(sample.columns) for sample in samples]
        columns = {name: [row.get(name, "") for row in rows] for name in model.clinical.names}
        said = model.clinical.fused(scores.probabilities.numpy(), columns).argmax(1).tolist()
    return [model.classes[index] for index in said]
