"""Models that are signed, and what is done to them afterwards."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from dynammo.deploy.graph import load_predictor
from dynammo.deploy.signature import SIGNATURE, check_key, new_key, sign_model, verify_model
from dynammo.errors import SignatureError
from tasks.support.mlflow.pyfunc_model import ImageClassifier
from tests.models import graph_folder


@pytest.fixture
def key(tmp_path: Path) -> Path:
    new_key(tmp_path / "key")
    return tmp_path / "key"


@pytest.fixture
def folder(tmp_path: Path, key: Path) -> Path:
    made = graph_folder(tmp_path / "model")
    sign_model(made, key)
    return made


def refused(folder: Path, key: Path, reason: str) -> None:
    with pytest.raises(SignatureError, match=reason) as caught:
        load_predictor(folder, public_key=f"{key}.pub")
    assert "\n" not in str(caught.value)


def test_a_hundred_flipped_bits_are_found(folder: Path, key: Path) -> None:
    files, chance = sorted(folder.iterdir()), random.Random(0)
    assert {file.name for file in files} == {"graph.json", "model.json", "model.onnx", SIGNATURE}
    verify_model(folder, f"{key}.pub")
    for number in range(100):
        file = files[number % len(files)]
        whole = file.read_bytes()
        changed = bytearray(whole)
        changed[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        file.write_bytes(changed)
        with pytest.raises(SignatureError):
            verify_model(folder, f"{key}.pub")
        file.write_bytes(whole)
    assert load_predictor(folder, public_key=f"{key}.pub").classes


def test_a_key_is_known_to_sign_before_anything_is_signed(key: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    new_key(other)
    check_key(key, None)
    check_key(key, Path(f"{key}.pub"))
    with pytest.raises(SignatureError, match=r"key is not that of .*other\.pub"):
        check_key(key, Path(f"{other}.pub"))
    with pytest.raises(SignatureError, match="others can read the private key"):
        check_key(Path(f"{key}.pub"), None)


def test_what_was_made_anew_is_refused(folder: Path, key: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    new_key(other)
    refused(folder, other, "is not signed by the key")
    shutil.copy(folder / "model.onnx", folder / "model.safetensors")
    refused(folder, key, "its files are not those that were signed")
    (folder / "model.safetensors").unlink()
    sign_model(folder, other)  # with all hashes right, by somebody else
    refused(folder, key, "is not signed by the key")
    (folder / SIGNATURE).unlink()
    refused(folder, key, "is not signed: there is no")
    load_predictor(folder)  # nobody asks


def test_the_served_model_asks_for_the_signature(
    folder: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNAMMO_PUBLIC_KEY", f"{key}.pub")
    model, context = ImageClassifier(), SimpleNamespace(artifacts={"model": str(folder)})
    model.load_context(context)
    (folder / SIGNATURE).write_text("[]")
    with pytest.raises(SignatureError):
        model.load_context(context)


def test_keys_are_looked_after(folder: Path, key: Path, tmp_path: Path) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        new_key(key)
    for public in (key, tmp_path):  # the private one; a folder
        with pytest.raises(SignatureError, match=r"public key|cannot read the key"):
            verify_model(folder, public)
    with pytest.raises(SignatureError, match="is no Ed25519 private key"):
        (tmp_path / "bad").touch(0o600)
        sign_model(folder, tmp_path / "bad")
    key.chmod(0o644)
    with pytest.raises(SignatureError, match="chmod 600"):
        sign_model(folder, key)
