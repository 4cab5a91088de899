"""What a learner still holds of the images it has seen, and how it is removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, TypedDict

import torch

from dynammo.checkpoint import Ref
from dynammo.config import RetentionConfig
from dynammo.data.marks import mark, rows
from dynammo.learner.folder import LearnerFolder, now
from dynammo.learner.ledger import Ledger
from tasks.evaluate import Evaluated
from tasks.support.kept import select_exemplars, select_tests
from tasks.support.stage import Stage
from tasks.support.version import Tested, Version, read_version
from tasks.support.workspace import Kept

Stays = Callable[[bytes, bytes], bool]
"""From the keyed hashes of an image and of its group: whether it stays."""

_IMAGES = ("exemplars", "test images", "test features", "training images")


class Held(TypedDict):
    """A file with something of single images: what, of how many, its bytes, in which versions."""

    what: str
    images: int
    bytes: int
    versions: list[int]
    file: str


def held(folder: LearnerFolder) -> list[Held]:
    """All that is still held of single images: exemplars, test images or their features, answers to
    them, and the ledger's keyed hashes. Statistics, adapters and heads are of many together.
    """
    found: dict[str, Held] = {}
    for number, version in _versions(folder):
        for what, tensor, ref in _traces(version):
            path = folder.store.path(ref)
            if ref["path"] not in found:
                found[ref["path"]] = {
                    "what": what,
                    "images": len(folder.store.load(ref)[tensor]),
                    "bytes": path.stat().st_size,
                    "versions": [],
                    "file": str(path),
                }
            found[ref["path"]]["versions"].append(number)
    return [{**own, "versions": sorted(set(own["versions"]))} for own in found.values()]


def erase(folder: LearnerFolder, stays: Stays, ledger: bool) -> int:
    """Remove images and all that is of single ones from every version, old ones included.

    Answers to test images go with them: a version is then compared by answering what is left.

    Args:
        folder: locked by the caller.
        stays: which images do.
        ledger: whether their keyed hashes go, too.

    Returns:
        How many exemplars and test images were removed, each once.
    """
    eraser = _Eraser(folder, stays, ledger)
    rewritten = [(number, eraser.version(version)) for number, version in _versions(folder)]
    for number, version in rewritten:
        if version != folder.version(number):
            folder.rewrite(number, dict(version))
    folder.tidy()
    return len(eraser.removed)


def forget_group(folder: LearnerFolder, group: str) -> int:
    """Remove one patient's images and hashes; as `erase` returns."""
    wanted = mark(folder.key, group)
    return erase(folder, lambda _, own: own != wanted, ledger=True)


def purge_batches(folder: LearnerFolder, batches: list[int] | None = None) -> int:
    """Remove all images held, or those of some batches; hashes stay. As `erase` returns."""
    came = _batch_of(folder)
    return erase(
        folder,
        lambda file, _: batches is not None and came.get(file) not in batches,
        ledger=False,
    )


def enforce(folder: LearnerFolder, retention: RetentionConfig) -> int:
    """Remove what is older than `max_days`, and the oldest while more than `max_mb` is held, batch
    by batch; as `erase` returns.
    """
    removed = 0
    batches = [batch for _, version in _versions(folder) for batch in version["batches"]]
    dates = {batch["number"]: batch["at"] for batch in batches}
    if retention.max_days is not None:
        today = datetime.fromisoformat(now())
        old = [
            number
            for number, at in dates.items()
            if (today - datetime.fromisoformat(at)).total_seconds() > retention.max_days * 86400
        ]
        if old:
            removed += purge_batches(folder, old)
    if retention.max_mb is not None:
        for number in sorted(dates, key=lambda own: (dates[own], own)):
            size = sum(own["bytes"] for own in held(folder) if own["what"] in _IMAGES)
            if size <= retention.max_mb * 1e6:
                break
            removed += purge_batches(folder, [number])
    return removed


class _Eraser:
    """Rewrites versions; what several share is rewritten once."""

    def __init__(self, folder: LearnerFolder, stays: Stays, ledger: bool) -> None:
        self.store, self.stays, self.of_ledger = folder.store, stays, ledger
        self.removed: set[bytes] = set()
        self.done: dict[str, Any] = {}

    def version(self, version: Version) -> Version:
        tests = [self._test(test) for test in version["tests"]]
        left = [test for test in tests if test is not None]
        stage = self._stage(version["stage"])
        if left != version["tests"]:
            stage = _without_answers(stage)
        ledger = self._ledger(version["ledger"]) if self.of_ledger else version["ledger"]
        return {**version, "tests": left, "stage": stage, "ledger": ledger}

    def _mask(self, files: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        pairs = list(zip(rows(files), rows(groups), strict=True))
        mask = torch.tensor([self.stays(*pair) for pair in pairs], dtype=torch.bool)
        self.removed |= {pair[0] for pair, own in zip(pairs, mask.tolist(), strict=True) if not own}
        return mask

    def _test(self, test: Tested) -> Tested | None:
        kept = self._kept(test["kept"])
        return None if kept is None else {**test, "kept": kept}

    def _kept(self, kept: Kept) -> Kept | None:
        key = f"{kept['labels']['path']} {kept['images']} {kept['features']}"
        if key not in self.done:
            own = self.store.load(kept["labels"])
            mask = self._mask(own["files"], own["groups"])
            whole = select_tests(kept, mask, kept["names"], self.store)
            self.done[key] = whole if bool(mask.any()) else None
        found: Kept | None = self.done[key]
        return found

    def _memory(self, memory: Ref) -> Ref:
        if memory["path"] not in self.done:
            state = self.store.load(memory)
            mask = self._mask(state["files"], state["groups"])
            places = torch.arange(len(state["counts"]))
            self.done[memory["path"]] = select_exemplars(memory, mask, places, self.store)
        found: Ref = self.done[memory["path"]]
        return found

    def _ledger(self, ledger: Ref) -> Ref:
        if ledger["path"] not in self.done:
            own = Ledger(**self.store.load(ledger))
            pairs = zip(rows(own.files), rows(own.groups), strict=True)
            mask = torch.tensor([self.stays(*pair) for pair in pairs], dtype=torch.bool)
            self.done[ledger["path"]] = self.store.save("ledger", own.where(mask).state(), {})
        found: Ref = self.done[ledger["path"]]
        return found

    def _stage(self, stage: Stage) -> Stage:
        adapted = stage["adapted"]
        if adapted is not None:
            adapted = {**adapted, "exemplars": self._memory(adapted["exemplars"])}
        training = [self._kept(own) for own in stage["training"]]
        result: Any = {
            **stage,
            "adapted": adapted,
            "training": [own for own in training if own is not None],
        }
        result["methods"] = {
            name: {**own, "exemplars": own["exemplars"] and self._memory(own["exemplars"])}
            for name, own in stage["methods"].items()
        }
        rewritten: Stage = result
        return rewritten


def _without_answers(stage: Stage) -> Stage:
    def cut(evaluated: Evaluated | None) -> Evaluated | None:
        return evaluated and {**evaluated, "predictions": None}

    return {
        **stage,
        "methods": {
            name: {**own, "evaluated": cut(own["evaluated"])}
            for name, own in stage["methods"].items()
        },
    }


def _versions(folder: LearnerFolder) -> Iterator[tuple[int, Version]]:
    for number in folder.numbers():
        yield number, read_version(folder, number)


def _batch_of(folder: LearnerFolder) -> dict[bytes, int]:
    """Every image that any version has seen, with its batch."""
    found: dict[bytes, int] = {}
    for _, version in _versions(folder):
        found |= Ledger(**folder.store.load(version["ledger"])).batch_of()
    return found


def _traces(version: Version) -> Iterator[tuple[str, str, Ref]]:
    """What a version holds of single images: what it is, the tensor with a row each, where."""
    stage = version["stage"]
    if stage["adapted"] is not None:
        yield "exemplars", "files", stage["adapted"]["exemplars"]
    for own in stage["methods"].values():
        if own["exemplars"] is not None:
            yield "exemplars", "files", own["exemplars"]
        if own["evaluated"] is not None and own["evaluated"]["predictions"] is not None:
            yield "answers", "targets", own["evaluated"]["predictions"]
    for what, kept in [
        *(("test", test["kept"]) for test in version["tests"]),
        *(("training", own) for own in stage["training"]),
    ]:
        yield f"{what} labels", "labels", kept["labels"]
        if kept["images"] is not None:
            yield f"{what} images", "images", kept["images"]
        for ref in kept["features"].values():
            yield f"{what} features", "features", ref
    yield "keyed hashes", "files", version["ledger"]
