"""Signatures: who answers for a model or a learner's version has put a key to it.

Hashes find what was changed by accident; who changes on purpose can make them anew. A signature
(Ed25519, RFC 8032) is over the SHA-256 of every file that decides an answer, lies beside the files,
and cannot be made without the private key. It does not say which of several signed versions is
meant to be in use.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynammo.checkpoint import to_json, write_atomically
from dynammo.errors import SignatureError

if TYPE_CHECKING:  # most who predict name no key, and need not wait for it
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

PUBLIC_KEY = "DYNAMMO_PUBLIC_KEY"  # environment variable: a file
SIGNATURE = "signature.json"
_FORMAT = "dynammo signature 1"
_READ = ("model.json", "model.safetensors", "model.onnx", "graph.json")  # of a model's folder


def new_key(file: Path) -> Path:
    """Make a private key, readable by its owner alone, and beside it the public one.

    Returns:
        The file of the public key: `<file>.pub`.

    Raises:
        FileExistsError: one of the two is there already.
    """
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key, public = Ed25519PrivateKey.generate(), file.with_name(f"{file.name}.pub")
    _write_new(
        public,
        key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo),
        0o644,
    )
    try:
        secret = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
        _write_new(file, secret, 0o600)
    except OSError:
        public.unlink()
        raise
    return public


def check_key(key: Path, public: Path | None) -> None:
    """Find out whether a key can sign, before anything is changed that it shall sign.

    Args:
        key: file of the private key.
        public: file of the public key that will be asked for; none if none is.

    Raises:
        SignatureError: it is no private key, others can read it, or it is not that of `public`.
    """
    own = _private(key).public_key()
    if public is not None and own != _public(public):
        raise SignatureError(f"the private key {key} is not that of {public}")


def sign(root: Path, files: Sequence[str], key: Path, target: Path) -> None:
    """Write a signature over files.

    Args:
        root: the files' folder.
        files: relative to it.
        key: file of the private key.
        target: of the signature; one that is there is replaced.

    Raises:
        SignatureError: it is no private key, or others can read it.
        OSError: a file cannot be read.
    """
    private = _private(key)
    document = _document(root, files, private.public_key())
    signature = private.sign(to_json(document)).hex()
    write_atomically(target, to_json({**document, "signature": signature}))


def verify(root: Path, files: Sequence[str], key: Path, target: Path, what: str) -> None:
    """Refuse what is not signed, byte for byte as it is.

    Args:
        root: the files' folder.
        files: relative to it; neither more nor fewer may be signed.
        key: file of the public key.
        target: of the signature.
        what: how to call them in an error.

    Raises:
        SignatureError: there is no signature, it is not by this key, or something was changed.
    """
    from cryptography.exceptions import InvalidSignature

    public = _public(key)
    try:
        content = target.read_bytes()
    except OSError:
        raise SignatureError(f"{what} is not signed: there is no {target}") from None
    try:
        document = _document(root, files, public)
    except OSError as error:
        raise SignatureError(f"{what}: cannot read {error.filename}: {error.strerror}") from None
    given = _parsed(content)
    signed = given.get("files")
    if given.get("key") != document["key"]:
        raise SignatureError(f"{what} is not signed by the key {key}")
    if not isinstance(signed, dict) or signed.keys() ^ document["files"].keys():
        raise SignatureError(f"{what}: its files are not those that were signed")
    for name, own in document["files"].items():
        if signed[name] != own:
            raise SignatureError(f"{what}: {name} is not the one that was signed")
    try:
        signature = bytes.fromhex(given["signature"])
        public.verify(signature, to_json(document))
    except (InvalidSignature, KeyError, TypeError, ValueError):
        raise SignatureError(f"{what}: the signature {target} is wrong") from None
    if content != to_json({**document, "signature": signature.hex()}):
        raise SignatureError(f"{what}: the signature {target} has been changed")


def sign_model(folder: Path, key: Path) -> None:
    """Sign all files of a model's folder that are read to answer; raises as `sign`."""
    sign(folder, _model_files(folder), key, folder / SIGNATURE)


def verify_model(folder: str | Path, key: str | Path) -> None:
    """Refuse a model folder that is not signed by a key; raises as `verify`."""
    folder = Path(folder)
    verify(folder, _model_files(folder), Path(key), folder / SIGNATURE, str(folder))


def _model_files(folder: Path) -> list[str]:
    return [name for name in _READ if name == _READ[0] or (folder / name).exists()]


def _document(root: Path, files: Sequence[str], key: Ed25519PublicKey) -> dict[str, Any]:
    """What is signed: the files by their hashes, and by which key."""
    hashes = {}
    for name in files:
        with (root / name).open("rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    fingerprint = hashlib.sha256(key.public_bytes_raw()).hexdigest()
    return {"format": _FORMAT, "files": hashes, "key": fingerprint}


def _parsed(content: bytes) -> dict[str, Any]:
    """A signature's document; empty if it is none."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _private(file: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _key_content(file)
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise SignatureError(f"others can read the private key {file}: chmod 600 it")
    try:
        key = load_pem_private_key(content, None)
    except Exception:  # nothing of the key may show in an error, whatever it is
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{file} is no Ed25519 private key without a passphrase, as PEM")
    return key


def _public(file: Path) -> Ed25519PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_key_content(file))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{file} is no Ed25519 public key, as PEM")
    return key


def _key_content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SignatureError(f"cannot read the key {file}: {error.strerror}") from None


def _write_new(file: Path, content: bytes, mode: int) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
        opened.write(content)
