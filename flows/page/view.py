"""What the page shows of learners, read from their folders anew each time."""

from __future__ import annotations

from typing import Any, NamedTuple

from dynammo.errors import CheckpointError
from dynammo.learner.folder import LearnerFolder
from dynammo.learner.folder import learners as names_in
from dynammo.learner.settings import DEPLOYED
from tasks.purge import Held, held
from tasks.report_change import report_of
from tasks.support.version import (
    Version,
    config_of,
    find_learner,
    learners_root,
    marks,
    read_version,
)


class Entry(NamedTuple):
    """A version in the timeline.

    Args:
        number: of the version; `parent` is 0 for the first.
        at: when, ISO 8601.
        operation: in words.
        gained: classes that its parent does not have; `lost`, those that only its parent has.
        recall: mean class recall; None where there were no test images.
        change: of it, to the parent's; the classes and the test images may differ.
        passed: the gate.
        problems: why not, and what the plan says.
        marks: champion, current, waits for a person.
        report: whether its change report is there.
    """

    number: int
    parent: int
    at: str
    operation: str
    gained: list[str]
    lost: list[str]
    recall: float | None
    change: float | None
    passed: bool
    problems: list[str]
    marks: list[str]
    report: bool


class Learner(NamedTuple):
    """A learner in the list: its champion (0: none), how many versions, the newest's classes."""

    name: str
    champion: int
    versions: int
    classes: list[str]


class Recall(NamedTuple):
    """A class of a version: its recall then, and the champion's of it; None where there is none."""

    name: str
    recall: float | None
    champion: float | None


def learners() -> list[Learner]:
    """All that there are, by name."""
    found = []
    for name in names_in(learners_root()):
        folder = find_learner(name)
        pointer, numbers = folder.pointer(), folder.numbers()
        classes = _classes(read_version(folder))
        found.append(Learner(name, pointer["champion"] or 0, len(numbers), classes))
    return found


def timeline(folder: LearnerFolder) -> list[Entry]:
    """All versions, the newest first."""
    pointer = folder.pointer()
    versions = {number: read_version(folder, number) for number in folder.numbers()}
    recalls = {
        number: _metrics(folder, version).get("mean_class_recall")
        for number, version in versions.items()
    }
    entries = []
    for number, version in versions.items():
        parent = versions.get(version["parent"])
        before = set(_classes(parent)) if parent else set()
        recall, earlier = recalls[number], recalls.get(version["parent"])
        entries.append(
            Entry(
                number=number,
                parent=version["parent"],
                at=version["at"],
                operation=version["operation"],
                gained=[name for name in _classes(version) if name not in before],
                lost=sorted(before - set(_classes(version))),
                recall=recall,
                change=None if recall is None or earlier is None else recall - earlier,
                passed=version["gate"]["passed"],
                problems=[
                    *(it["detail"] for it in version["gate"]["checks"] if not it["passed"]),
                    *version["judgement"]["outside"],
                ],
                marks=marks(pointer, number, version),
                report=report_of(folder, number).is_file(),
            )
        )
    return entries[::-1]


def class_recalls(folder: LearnerFolder, number: int) -> list[Recall]:
    """Recall of the classes of a version and of the champion, as measured when each was made."""
    champion = folder.pointer()["champion"]
    now = _recalls(folder, read_version(folder, number))
    best = _recalls(folder, read_version(folder, champion)) if champion else {}
    return [Recall(name, now.get(name), best.get(name)) for name in {**now, **best}]


def batches(folder: LearnerFolder) -> list[dict[str, Any]]:
    """What the learner is made of and could forget: `number`, `classes`, `images`, `at`."""
    return [
        {
            "number": batch["number"],
            "classes": [*batch["new"], *batch["again"]],
            "images": batch["train_images"],
            "at": batch["at"],
        }
        for batch in read_version(folder)["batches"]
    ]


def held_images(folder: LearnerFolder) -> tuple[list[Held], str]:
    """What is held of single images, and in words what the configuration says of how long."""
    retention = config_of(read_version(folder)).retention
    limits = [
        f"at most {retention.max_days:g} days" if retention.max_days is not None else "",
        f"at most {retention.max_mb:g} MB" if retention.max_mb is not None else "",
    ]
    found: dict[str, Held] = {}
    for own in held(folder):
        so_far = found.get(own["what"], {**own, "images": 0, "bytes": 0, "versions": []})
        found[own["what"]] = {
            **so_far,
            "images": max(so_far["images"], own["images"]),  # of several methods, the same images
            "bytes": so_far["bytes"] + own["bytes"],
            "versions": sorted({*so_far["versions"], *own["versions"]}),
        }
    return list(found.values()), " and ".join(filter(None, limits)) or "until they are purged"


def _classes(version: Version) -> list[str]:
    return [name for task in version["stage"]["tasks"] for name in task]


def _recalls(folder: LearnerFolder, version: Version) -> dict[str, float | None]:
    measured = _metrics(folder, version).get("per_class", {})
    return {name: measured.get(name, {}).get("recall") for name in _classes(version)}


def _metrics(folder: LearnerFolder, version: Version) -> dict[str, Any]:
    """Measured when it was made; empty where nothing was, or where it is no longer kept."""
    own = version["stage"]["methods"].get(DEPLOYED)
    if own is None or own["evaluated"] is None:
        return {}
    try:
        document: dict[str, Any] = folder.store.load_json(own["evaluated"]["metrics"])
    except CheckpointError:
        return {}
    return document
