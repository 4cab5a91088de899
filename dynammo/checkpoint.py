"""Checkpoints: `.safetensors` weights beside a readable `.json` that says where they came from.

What travels between pipeline steps is a `Ref`: a path inside the store and the SHA-256 of the
content. Files are named by that hash and written to a temporary name first, so a killed process
leaves no half-written checkpoint and a finished one is never overwritten by something else.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypedDict

from safetensors import SafetensorError

from dynammo.errors import CheckpointError
from dynammo.state import State

if TYPE_CHECKING:  # documents and files need no torch, and who predicts has none loaded
    from torch import Tensor


class Ref(TypedDict):
    """A file in a store: its path relative to the store's folder, and its content's SHA-256."""

    path: str
    sha256: str


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: temporary name in the same folder, then rename."""
    with written_atomically(path) as file:
        file.write(content)


@contextmanager
def written_atomically(path: Path) -> Iterator[IO[bytes]]:
    """As `write_atomically`, piece by piece: the file appears when the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_writable(path: Path) -> None:
    """Find out before long work whether `write_atomically` will be able to write a file.

    Raises:
        OSError: it is a folder, or its folder cannot be made or written to.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    # Nothing is made yet: what is refused afterwards must leave nothing behind.
    there = next(folder for folder in path.absolute().parents if folder.exists())
    with tempfile.TemporaryFile(dir=there):
        pass


def to_json(document: Any) -> bytes:
    """Readable, the same bytes for the same content; refuses NaN."""
    return (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def sealed(document: Mapping[str, Any]) -> bytes:
    """As `to_json`, with the SHA-256 of all the rest as the key `document_sha256`."""
    digest = hashlib.sha256(to_json(document)).hexdigest()
    return to_json({**document, "document_sha256": digest})


def unsealed(content: bytes) -> dict[str, Any]:
    """The document that `sealed` wrote, without its hash.

    Raises:
        CheckpointError: it is no JSON document, or not byte for byte what was written.
    """
    try:
        document = json.loads(content)
        if not isinstance(document, dict):
            raise CheckpointError(f"a {type(document).__name__} where a document was expected")
        document.pop("document_sha256", None)
        intact = sealed(document) == content
    except (ValueError, RecursionError) as error:
        raise CheckpointError(str(error)) from None
    if not intact:
        raise CheckpointError("it has been changed since it was written")
    return document


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
        from safetensors.torch import save

        # Cloned, because safetensors refuses tensors that share memory.
        content = save({name: tensor.contiguous().clone() for name, tensor in tensors.items()})
        digest = hashlib.sha256(content).hexdigest()
        path = f"{kind}-{digest[:16]}.safetensors"
        document = {"kind": kind, "sha256": digest, **meta}
        write_atomically((self.folder / path).with_suffix(".json"), sealed(document))
        write_atomically(self.folder / path, content)
        return {"path": path, "sha256": digest}

    def load(self, ref: Ref) -> State:
        """The weights behind a reference.

        Raises:
            CheckpointError: the file is missing, its content is not what the reference names, or it
                is no safetensors file.
        """
        from safetensors.torch import load

        try:
            return load(self._read(ref))
        except SafetensorError as error:
            raise CheckpointError(f"{self.folder / ref['path']} is damaged: {error}") from None

    def meta(self, ref: Ref) -> dict[str, Any]:
        """The metadata saved beside the weights.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        path = (self.folder / ref["path"]).with_suffix(".json")
        try:
            return unsealed(path.read_bytes())
        except (OSError, CheckpointError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from None

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
        """Whether the file is there with the content that the reference names, and so is the
        metadata of weights.
        """
        try:
            self._read(ref)
            weights = ref["path"].endswith(".safetensors")
            return not weights or self.meta(ref).get("sha256") == ref["sha256"]
        except CheckpointError:
            return False

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
