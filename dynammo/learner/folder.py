"""A learner's folder: versions that are never changed, and a pointer that moves last.

    <root>/<name>/
        learner.json       the pointer: which version is current, which is champion
        key                secret under which images and groups are named; only the owner reads it
        versions/0003.json what a version is made of, and where it came from
        objects/           its tensors, by content: versions share what they have in common
        work/              of a step that is under way; empty otherwise

A version is written when all its objects are, and becomes current when the pointer is replaced: a
learner that is killed at any time is at the version before or after.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from dynammo.checkpoint import CheckpointStore, Ref, references_in, to_json, write_atomically
from dynammo.errors import DynammoError

FORMAT = 2
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class LearnerError(DynammoError):
    """A learner that is not there, is damaged, is in use, or was written by another program."""


class Change(TypedDict):
    """A version became champion: when, and why against the gate, if it was."""

    version: int
    at: str
    reason: str | None


class Agreed(TypedDict):
    """A plan of changes (`dynammo.evaluation.plan`) came into force; `authorised` is the version
    that was champion then.
    """

    plan: Ref
    authorised: int
    at: str


class Pointer(TypedDict):
    """Which version a learner is at, and which one is deployed; 0 where there is none yet.

    `champions` are all changes of the latter and `plans` all plans, oldest first; the last plan is
    in force.
    """

    format: int
    name: str
    current: int
    champion: int
    champions: list[Change]
    plans: list[Agreed]


_POINTER = {"current": int, "champion": int, "champions": list, "plans": list}


class LearnerFolder:
    """One learner on disk.

    Args:
        root: folder of all learners.
        name: of this one: letters, digits, - and _.

    Raises:
        LearnerError: the name is none.
    """

    def __init__(self, root: Path, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise LearnerError(f"{name!r} is no name of a learner: letters, digits, - and _")
        self.name = name
        self.path = (root / name).absolute()
        self.work = self.path / "work"
        self.store = CheckpointStore(self.path / "objects")

    @property
    def exists(self) -> bool:
        """Whether the learner has learnt anything yet."""
        return (self.path / "learner.json").is_file()

    @property
    def key(self) -> str:
        """The learner's secret, hex; made when it is first asked for."""
        file = self.path / "key"
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            pass
        else:
            with os.fdopen(handle, "w") as stream:
                stream.write(secrets.token_hex(32))
                stream.flush()
                os.fsync(stream.fileno())
        text = file.read_text(encoding="ascii").strip()
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            if self.exists:
                raise LearnerError(f"{file} is damaged: expected 64 hexadecimal digits")
            file.unlink()  # killed while it was written, before anything was named with it
            return self.key
        return text

    @property
    def identity(self) -> str:
        """What names this learner, whatever it is called and wherever it is; not secret."""
        return hashlib.sha256(f"identity {self.key}".encode()).hexdigest()

    def pointer(self) -> Pointer:
        """Where the learner is.

        Raises:
            LearnerError: there is no such learner, its pointer is damaged or of another format.
        """
        if not self.exists:
            raise LearnerError(f"there is no learner {self.name!r} in {self.path.parent}")
        path = self.path / "learner.json"
        document = _read(path)
        for key, kind in _POINTER.items():
            if not isinstance(document.get(key), kind):
                raise LearnerError(f"{path} is damaged: {key!r} is no {kind.__name__}")
        pointer: Pointer = {
            "format": FORMAT,
            "name": self.name,
            "current": document["current"],
            "champion": document["champion"],
            "champions": document["champions"],
            "plans": document["plans"],
        }
        return pointer

    def version(self, number: int) -> dict[str, Any]:
        """The document of a version.

        Raises:
            LearnerError: there is none, it is damaged or of another format.
        """
        path = self._file(number)
        if not path.is_file():
            known = ", ".join(map(str, self.numbers())) or "none"
            raise LearnerError(f"{self.name} has no version {number}; there are: {known}")
        return _read(path)

    def current(self) -> dict[str, Any]:
        """The document of the version that the learner is at."""
        return self.version(self.pointer()["current"])

    def numbers(self) -> list[int]:
        """All versions, oldest first."""
        files = (self.path / "versions").glob("[0-9]*.json")
        return sorted(int(file.stem) for file in files)

    def commit(self, document: Mapping[str, Any], *, champion: bool) -> int:
        """Write the next version; the learner is at it when this returns.

        Args:
            document: what `version` will give; `format` and `number` are added.
            champion: whether it is the champion from now on.

        Returns:
            Its number.
        """
        old = self.current() if self.exists else {}
        known = {ref["path"] for ref in references_in(old)}
        for ref in references_in(dict(document)):
            if ref["path"] not in known:
                _sync(self.store.path(ref))
        number = self.next_number()
        write_atomically(
            self._file(number), to_json({"format": FORMAT, "number": number, **document})
        )
        for path in (self._file(number), self._file(number).parent, self.store.folder):
            if path.exists():
                _sync(path)  # of a folder: that the renamed files are in it
        self._point(number, number if champion else None, None)
        return number

    def next_number(self) -> int:
        """Of the version that is committed next."""
        return max(self.numbers(), default=0) + 1

    def promote(self, number: int, reason: str | None = None) -> None:
        """Make a version champion, perhaps against the gate, for a reason that is kept."""
        self.version(number)
        self._point(self.pointer()["current"], number, reason)

    def rollback(self, number: int) -> None:
        """Go back to a version: it is current and champion, and learning goes on from it."""
        self.version(number)
        self._point(number, number, "rollback")

    def agree(self, plan: Ref) -> None:
        """Put a plan, saved in the store, into force; the champion is its authorised version."""
        for path in (self.store.path(plan), self.store.folder):
            _sync(path)
        pointer = self.pointer()
        agreed: Agreed = {"plan": plan, "authorised": pointer["champion"], "at": now()}
        self._write({**pointer, "plans": [*pointer["plans"], agreed]})

    def rewrite(self, number: int, document: dict[str, Any]) -> None:
        """Replace a version's document where less is kept of it than before (`purge`)."""
        write_atomically(self._file(number), to_json(document))

    def unused(self) -> list[Path]:
        """Objects that no version or plan refers to: of a step under way, or of one killed."""
        used = {name for number in self.numbers() for name in _files(self.version(number))}
        if self.exists:
            used |= _files({**self.pointer()})
        return [
            file
            for file in sorted(self.store.folder.glob("*"))
            if file.with_suffix("").name not in used
        ]

    def tidy(self, keep: Path | None = None) -> None:
        """Remove what no version refers to, and the work folder, but for one file in it."""
        for file in self.unused():
            file.unlink(missing_ok=True)
        if keep is None or not keep.is_file():
            shutil.rmtree(self.work, ignore_errors=True)
            return
        for path in self.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path != keep:
                path.unlink(missing_ok=True)

    def problems(self) -> list[str]:
        """What is damaged: objects of the current version and plans, missing or changed."""
        references = [*references_in(self.current()), *references_in({**self.pointer()})]
        return [
            f"{self.store.folder / ref['path']} is missing or damaged"
            for ref in references
            if not self.store.intact(ref)
        ]

    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Nobody else changes the learner meanwhile; ends with the process, however it ends.

        Raises:
            LearnerError: somebody else is changing it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise LearnerError(
                    f"{self.name} is being changed by process {file.read().strip() or '?'}: wait "
                    "for it, or stop it"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def _file(self, number: int) -> Path:
        return self.path / "versions" / f"{number:04d}.json"

    def _point(self, current: int, champion: int | None, reason: str | None) -> None:
        """Move the pointer; champion None leaves it where it is."""
        was: Mapping[str, Any] = {"champion": 0, "champions": [], "plans": []}
        if self.exists:
            was = self.pointer()
        changes = list(was["champions"])
        if champion is not None:
            changes.append({"version": champion, "at": now(), "reason": reason})
        pointer: Pointer = {
            "format": FORMAT,
            "name": self.name,
            "current": current,
            "champion": was["champion"] if champion is None else champion,
            "champions": changes,
            "plans": was["plans"],
        }
        self._write(pointer)

    def _write(self, pointer: Pointer) -> None:
        write_atomically(self.path / "learner.json", to_json(pointer))
        _sync(self.path / "learner.json")
        _sync(self.path)


def now() -> str:
    """The time, UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def learners(root: Path) -> list[str]:
    """Names of the learners in a folder."""
    return sorted(file.parent.name for file in root.glob("*/learner.json"))


def _files(document: dict[str, Any]) -> set[str]:
    """Names, without their ending, of the files that a version refers to."""
    return {Path(ref["path"]).with_suffix("").name for ref in references_in(document)}


def _read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = document["format"]
    except OSError as error:
        raise LearnerError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LearnerError(f"{path} is damaged: {error}") from None
    if found != FORMAT:
        raise LearnerError(
            f"{path} is of format {found!r}, this program reads {FORMAT}: use the version of "
            "dynammo that wrote it, or a newer one"
        )
    return document


def _sync(path: Path) -> None:
    """Wait until the disk has it: a power cut then leaves the pointer behind its version."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
