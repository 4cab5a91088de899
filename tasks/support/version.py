"""A version of a learner: all that it is made of, and where it came from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Unpack

from dynammo.checkpoint import Ref
from dynammo.config import Config, load_config
from dynammo.evaluation.gate import Comparison, Decision
from dynammo.evaluation.protocol import Arrived, Judgement, Step
from dynammo.learner.folder import LearnerFolder, Pointer, now
from dynammo.learner.ledger import Ledger
from dynammo.learner.settings import DEPLOYED
from tasks.support.caching import CODE, code_version
from tasks.support.stage import Stage
from tasks.support.workspace import Context, Kept, context_of, versions

WAITS = "passed; champion once somebody runs: dynammo promote %s %d"


class Learnt(TypedDict):
    """A batch that a version has learnt: `new` classes, and images of classes known `again`."""

    number: int
    hash: str
    at: str
    new: list[str]
    again: list[str]
    train_images: int
    test_images: int


class Tested(TypedDict):
    """The test images of a batch, as they are kept."""

    batch: int
    kept: Kept


class Forgotten(TypedDict):
    """What was learnt and taken out again: hashes of batches, and classes."""

    batches: list[str]
    classes: list[str]


class Content(TypedDict):
    """What a step makes of a learner: `operation`, in words, and what there is after it.

    `stage` is measured on `tests`; `notes` say what a user should know of it. `taken_for` is, of a
    class that this step took out, how many of its test images are called what now.
    """

    operation: str
    backbone: Ref
    stage: Stage
    batches: list[Learnt]
    forgotten: Forgotten
    tests: list[Tested]
    notes: list[str]
    taken_for: NotRequired[dict[str, dict[str, int]]]


class Draft(Content):
    """A version's document before it is judged.

    `parent` is the version it was made of, 0 for the first. `code` is the hash of the code of the
    steps and `versions` are those of the libraries: recorded, never demanded; `notes` say where
    either differs from the parent's. `steps` are all changes that led here, oldest first. `round`
    tells which site sent what, by hash, where sites made this version or one before it
    (`dynammo.federated`); `counts`, of a version that sites made, is what they counted on their
    test images, instead of `tests`.
    """

    parent: int
    at: str
    config: dict[str, Any]
    ledger: Ref
    code: str
    versions: dict[str, str]
    steps: list[Step]
    round: NotRequired[Ref]
    counts: NotRequired[Ref]


class Version(Draft):
    """A version's document; a committed one has `format` and `number` too.

    `comparison` is with the champion, `gate` says whether the version may become it, `judgement`
    is what the plan says, and `waits` that it passed and a person decides (`gate.by_hand`).
    """

    comparison: Comparison | None
    gate: Decision
    judgement: Judgement
    waits: NotRequired[bool]


def draft_version(
    folder: LearnerFolder,
    before: Version | None,
    config: Config,
    ledger: Ledger,
    modifications: list[str],
    new: dict[str, Arrived],
    **content: Unpack[Content],
) -> Draft:
    """The learner's next version.

    Args:
        folder: of the learner.
        before: the version that it is made of; none for the first.
        config: it was made with.
        ledger: of what it has seen.
        modifications: what was done, as a plan calls it (`dynammo.evaluation.plan`).
        new: how much came of each new class.
        content: the rest.
    """
    parent = folder.pointer()["current"] if folder.exists else 0
    code, libraries = code_version(*CODE), versions()
    step = Step(version=folder.next_number(), parent=parent, modifications=modifications, new=new)
    held: dict[str, Ref] = {"round": before["round"]} if before and "round" in before else {}
    return {
        **content,
        **held,  # type: ignore[typeddict-item]
        "parent": parent,
        "at": now(),
        "config": config.model_dump(mode="json"),
        "ledger": folder.store.save("ledger", ledger.state(), {}),
        "code": code,
        "versions": libraries,
        "notes": [*content["notes"], *_continued(before, code, libraries)],
        "steps": [*(before["steps"] if before else []), step],
    }


def _continued(before: Version | None, code: str, libraries: dict[str, str]) -> list[str]:
    """What differs from the environment that the parent was made in."""
    if before is None:
        return []
    notes = [
        f"continued with {name} {found}, after {before['versions'].get(name, 'none')}"
        for name, found in libraries.items()
        if before["versions"].get(name) != found
    ]
    return notes if before["code"] == code else [*notes, "continued with other code"]


def learners_root() -> Path:
    """The folder of all learners: `learners` here, or the environment variable
    `DYNAMMO_LEARNERS`.
    """
    return Path(os.environ.get("DYNAMMO_LEARNERS", "learners")).absolute()


def find_learner(name: str) -> LearnerFolder:
    """The learner's folder, whether it has learnt anything or not."""
    return LearnerFolder(learners_root(), name)


def read_version(folder: LearnerFolder, number: int | None = None) -> Version:
    """A version that is written; default: the current one."""
    document: Any = folder.current() if number is None else folder.version(number)
    version: Version = document
    return version


def config_of(version: Version) -> Config:
    """The configuration that a version was made with."""
    return load_config(None, version["config"])


def by_hand(folder: LearnerFolder, config: Config) -> bool:
    """Whether a version that passes waits for a person: by its own configuration or the champion's,
    before there is one any version's. So who learns cannot switch `gate.by_hand` off alone.
    """
    asked = [folder.pointer()["champion"]] if folder.exists else []
    if asked == [0]:
        asked = folder.numbers()
    others = (config_of(read_version(folder, number)) for number in asked)
    return any(own.gate.by_hand for own in (config, *others))


def waits(pointer: Pointer, number: int, version: Version) -> bool:
    """Whether a version passed and waits for a person still: neither it nor a later one has become
    champion.
    """
    later = any(own["version"] >= number for own in pointer["champions"])
    return version.get("waits", False) and not later


def marks(pointer: Pointer, number: int, version: Version) -> list[str]:
    """What a version is, in words: champion, current, waits for a person."""
    found = [mark for mark in ("champion", "current") if pointer[mark] == number]
    return [*found, "waits for a person"] if waits(pointer, number, version) else found


def context_in(folder: LearnerFolder, config: Config, label: str = "") -> Context:
    """The context of a step that works in a learner's store and sees no batch."""
    return context_of(config, store=str(folder.store.folder), key=folder.key, label=label)


def ledger_of(folder: LearnerFolder, version: Version) -> Ledger:
    """What a version has seen."""
    return Ledger(**folder.store.load(version["ledger"]))


def recall_of(folder: LearnerFolder, version: Draft, method: str = DEPLOYED) -> float | None:
    """Mean class recall as measured when the version was made; none if it could not be."""
    own = version["stage"]["methods"].get(method)
    if own is None or own["evaluated"] is None:
        return None
    document = folder.store.load_json(own["evaluated"]["metrics"])
    recall: float | None = document["mean_class_recall"]
    return recall
