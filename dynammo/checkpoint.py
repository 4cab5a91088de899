"""Checkpoints: `.safetensors` weights beside a readable `.json` that says where they came from.

What travels between pipeline steps is a `Ref`: a path inside the store and the SHA-256 of the
content. Files are named by that hash and written to a temporary name first, so a killed process
leaves no half-written checkpoint and a finished one is never overwritten by something else.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dynammo.errors import CheckpointError
from dynammo.state import State


class Ref(TypedDict):
    """A file in a store: its path relative to the store's folder, and its content's SHA-256."""

    path: str
    sha256: str


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: temporary name in the same folder, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def to_json(document: Any) -> bytes:
    """Readable, the same bytes for the same content; refuses NaN."""
    return (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def references_in(value: Any) -> list[Ref]:
    """Every reference to a checkpoint inside a document."""
    if isinstance(value, dict):
        if value.keys() == {"path", "sha256"}:
            return [{"path": value["path"], "sha256": value["sha256"]}]
        return [ref for inner in value.values() for ref in references_in(inner)]
    if isinstance(value, list):
        return [ref for inner in value for ref in references_in(inner)]
    return []


class CheckpointStore:
    """A folder of content-addressed checkpoints and JSON documents.

    Args:
        folder: where the files live; made when something is first saved.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def save(self, kind: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Ref:
        """Save weights as `<kind>-<hash>.safetensors` and `meta` as the `.json` beside it.

        The reference's hash is that of the weights file; the metadata names its parents' hashes.
        """
        # Cloned, because safetensors refuses tensors that share memory.
        content = save({name: tensor.contiguous().clone() for name, tensor in tensors.items()})
        digest = hashlib.sha256(content).hexdigest()
        path = f"{kind}-{digest[:16]}.safetensors"
        document = {"kind": kind, "sha256": digest, **meta}
        write_atomically((self.folder / path).with_suffix(".json"), to_json(document))
        write_atomically(self.folder / path, content)
        return {"path": path, "sha256": digest}

    def load(self, ref: Ref) -> State:
        """The weights behind a reference.

        Raises:
            CheckpointError: the file is missing, its content is not what the reference names, or it
                is no safetensors file.
        """
        try:
            return load(self._read(ref))
        except SafetensorError as error:
            raise CheckpointError(f"{self.folder / ref['path']} is damaged: {error}") from None

    def meta(self, ref: Ref) -> dict[str, Any]:
        """The metadata saved beside the weights.

        Raises:
            CheckpointError: it is missing or not JSON.
        """
        path = (self.folder / ref["path"]).with_suffix(".json")
        try:
            document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from None
        return document

    def save_json(self, kind: str, document: Any) -> Ref:
        """Save a JSON document as `<kind>-<hash>.json`."""
        content = to_json(document)
        digest = hashlib.sha256(content).hexdigest()
        path = f"{kind}-{digest[:16]}.json"
        write_atomically(self.folder / path, content)
        return {"path": path, "sha256": digest}

    def load_json(self, ref: Ref) -> Any:
        """The document behind a reference; raises `CheckpointError` as `load` does."""
        try:
            return json.loads(self._read(ref))
        except ValueError as error:
            raise CheckpointError(f"{self.folder / ref['path']} is damaged: {error}") from None

    def intact(self, ref: Ref) -> bool:
        """Whether the file is there with the content that the reference names."""
        try:
            self._read(ref)
        except CheckpointError:
            return False
        return True

    def path(self, ref: Ref) -> Path:
        """Where the file is."""
        return self.folder / ref["path"]

    def _read(self, ref: Ref) -> bytes:
        path = self.folder / ref["path"]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror}") from None
        digest = hashlib.sha256(content).hexdigest()
        if digest != ref["sha256"]:
            raise CheckpointError(
                f"{path} has changed: its SHA-256 is {digest}, expected {ref['sha256']}"
            )
        return content
