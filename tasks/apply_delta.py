"""Put the version that a delta makes in the place of the one before, and back.

A device may lose its power at any moment: there is always one whole model under the name, and what
is kept of the version before is whole, too.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dynammo.deploy.delta import FILES, apply_delta, is_new, read_delta
from dynammo.deploy.graph import load_predictor
from dynammo.errors import CheckpointError, SignatureError
from tasks.support.exchange import remove_drafts, swap


def previous_of(model: Path) -> Path:
    """Where the version before is kept: beside the model."""
    model = model.resolve()
    return model.with_name(f"{model.name}.previous")


def update_model(model: Path, file: Path, public_key: Path | None = None) -> bool:
    """Replace a model by the version that a delta makes of it; the one before is kept.

    The new version is checked byte for byte, loaded by the engine that will answer, and on the disk
    before it takes the other's name in one step (where the system cannot exchange two folders, in
    three: what a process killed in between leaves, the next update or revert puts back first).

    Args:
        model: its folder.
        file: the delta.
        public_key: file of the key that must have signed the new version; none: whoever made it.

    Returns:
        False where the model is that version already, and nothing was done.

    Raises:
        CheckpointError: the delta is damaged, made from another version than this one, or its
            version cannot be used here; or another process is at it. All is as it was.
        SignatureError: the new version is not signed by that key. All is as it was.
    """
    delta = read_delta(file)
    model, previous = model.resolve(), previous_of(model)
    with _alone(model) as draft:
        if is_new(delta, model):
            _check(model, str(model), public_key)
            return False
        new, old = draft / "new", draft / "old"
        new.mkdir()
        old.mkdir()
        apply_delta(delta, model, new)
        _check(new, f"what {file} makes", public_key)
        _refuse_foreign(previous)
        for name in os.listdir(model):
            _link(model / name, old / name)
        for folder in (new, old):
            _to_disk(folder)
        _put(old, previous)
        _put(new, model)
    return True


def revert_model(model: Path, public_key: Path | None = None) -> None:
    """Exchange a model for the version before; twice, and all is as it was.

    Raises:
        CheckpointError: none is kept, or it cannot be used; or another process is at it.
        SignatureError: it is not signed by the key that must have signed it.
    """
    model, previous = model.resolve(), previous_of(model)
    with _alone(model):
        if not previous.is_dir():
            raise CheckpointError(f"there is no version before: {previous} is missing")
        _refuse_foreign(previous)
        _check(previous, str(previous), public_key)
        if not model.exists():
            previous.replace(model)
            return
        _put(previous, model)


def _check(folder: Path, what: str, public_key: Path | None) -> None:
    """Whether the engine that would answer loads a folder, and the key has signed it."""
    try:
        load_predictor(folder, public_key=public_key)
    except (CheckpointError, SignatureError) as error:
        reason = str(error).replace(f"{folder}/", "").replace(str(folder), what)
        raise type(error)(reason) from None


def _refuse_foreign(previous: Path) -> None:
    if previous.is_dir() and (strange := sorted(set(os.listdir(previous)) - set(FILES))):
        raise CheckpointError(f"{previous} would be replaced, but holds {strange[0]}")


@contextmanager
def _alone(model: Path) -> Iterator[Path]:
    """A folder beside the model to work in, which nobody else does; what was left of a killed
    process is removed, or put back.
    """
    prefix = f".{model.name}.delta."
    handle = os.open(model.parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CheckpointError(f"another process updates a model in {model.parent}") from None
        for left in model.parent.iterdir():
            if left.name.startswith(prefix):
                shutil.rmtree(left, ignore_errors=True)
        previous = previous_of(model)
        remove_drafts(previous)
        remove_drafts(model, previous)
        with tempfile.TemporaryDirectory(dir=model.parent, prefix=prefix) as draft:
            yield Path(draft)
            os.fsync(handle)
    finally:
        os.close(handle)


def _put(fresh: Path, target: Path) -> None:
    """Give a folder a name; what had it gets the other's."""
    if target.exists():
        swap(fresh, target)
    else:
        fresh.replace(target)


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the file system has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _to_disk(folder: Path) -> None:
    """Wait until all files of a folder are on the disk."""
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
