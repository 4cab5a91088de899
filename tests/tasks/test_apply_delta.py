"""A device's model is updated: whole or not at all, and back."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynammo.checkpoint import sealed
from dynammo.deploy import delta as deltas
from dynammo.deploy.delta import make_delta
from dynammo.deploy.graph import load_predictor
from dynammo.deploy.signature import SIGNATURE, new_key, sign_model
from dynammo.errors import CheckpointError, SignatureError
from tasks import apply_delta as applying
from tasks.apply_delta import previous_of, revert_model, update_model
from tasks.support import exchange
from tests.models import graph_folder, record


def version(folder: Path, number: int) -> Path:
    """A model folder that says which it is."""
    graph_folder(folder)
    document = json.loads((folder / "model.json").read_bytes())
    del document["document_sha256"]
    (folder / "model.json").write_bytes(sealed({**document, "number": number}))
    record(folder)
    return folder


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """A device's model, and the delta that makes the next version of it."""
    model = version(tmp_path / "device" / "model", 1)
    return model, delta_to(model, version(tmp_path / "new", 2))


def delta_to(model: Path, new: Path) -> Path:
    file = new.with_suffix(".delta")
    file.write_bytes(make_delta(model, new).content)
    return file


def number(model: Path) -> int:
    """Of the version, which is whole."""
    load_predictor(model)
    found: int = json.loads((model / "model.json").read_bytes())["number"]
    return found


def names(model: Path) -> set[str]:
    """What there is beside the model, and itself."""
    return {path.name for path in model.parent.iterdir()}


@pytest.mark.parametrize("exchanges", [True, False])
def test_there_and_back(
    exchanges: bool, made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:
        monkeypatch.setattr(exchange, "exchanged", lambda *_: False)
    model, file = made
    assert update_model(model, file)
    assert (number(model), number(previous_of(model))) == (2, 1)
    assert not update_model(model, file)  # it is there already
    third = delta_to(model, version(tmp_path / "third", 3))
    assert update_model(model, third)
    assert (number(model), number(previous_of(model))) == (3, 2)
    for now, before in ((2, 3), (3, 2)):
        revert_model(model)
        assert (number(model), number(previous_of(model))) == (now, before)
    with pytest.raises(CheckpointError, match="is not the version that the delta was made from"):
        update_model(model, file)
    assert names(model) == {"model", "model.previous"}
    assert model.stat().st_mode & 0o777 == model.parent.stat().st_mode & 0o777


def test_a_link_to_the_model_stays_one(made: tuple[Path, Path], tmp_path: Path) -> None:
    model, file = made
    link = tmp_path / "current"
    link.symlink_to(model)
    assert update_model(link, file)
    assert link.is_symlink()
    assert number(link) == 2


STEPS = ("apply_delta", "_check", "_link", "_to_disk", "_put", "swap")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("when", ["before", "after"])
def test_ended_at_any_step(
    step: str, nth: int, when: str, made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is then there is whole, and the same command ends as if nothing had been."""
    model, file = made
    work, count = getattr(applying, step), [0]

    def ended(*arguments: object) -> object:
        count[0] += 1
        if count[0] == nth and when == "before":
            os._exit(9)
        result = work(*arguments)
        if count[0] == nth:
            os._exit(9)
        return result

    child = os.fork()
    if not child:
        monkeypatch.setattr(applying, step, ended)
        update_model(model, file)
        os._exit(0)
    os.waitpid(child, 0)
    assert number(model) in (1, 2)
    if number(model) == 2:
        assert number(previous_of(model)) == 1
    update_model(model, file)
    assert (number(model), number(previous_of(model))) == (2, 1)
    left = {name for name in names(model) if name.startswith(".")}
    assert not left or number(model) == 2
    revert_model(model)
    assert number(model) == 1
    assert names(model) == {"model", "model.previous"}


def killed_at(nth: int, when: str, work: Callable[[], object]) -> bool:
    """Do some work in a process that ends at its nth rename, on a system that exchanges nothing;
    whether it did.
    """
    child = os.fork()
    if not child:
        rename, count = os.replace, [0]

        def ended(*names: Any) -> None:
            count[0] += 1
            if count[0] == nth and when == "before":
                os._exit(9)
            rename(*names)
            if count[0] == nth:
                os._exit(9)

        exchange.exchanged = lambda *_: False
        os.replace = ended  # type: ignore[assignment]
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


RENAMES = [(nth, when) for nth in range(1, 8) for when in ("before", "after")]


@pytest.mark.parametrize(("nth", "when"), RENAMES)
def test_killed_between_renames_an_update_loses_no_version(
    nth: int, when: str, made: tuple[Path, Path], tmp_path: Path
) -> None:
    model, file = made
    update_model(model, file)  # 2, and 1 before
    third = delta_to(model, version(tmp_path / "third", 3))
    ended = killed_at(nth, when, lambda: update_model(model, third))
    assert ended == (nth <= 6)  # three for each of the two names
    with applying._alone(model.resolve()):
        pass
    found = number(model), number(previous_of(model))
    assert found in {(2, 1), (2, 2), (3, 2)}
    update_model(model, third)
    assert (number(model), number(previous_of(model))) == (3, 2)
    revert_model(model)
    assert number(model) == 2
    assert names(model) == {"model", "model.previous"}


@pytest.mark.parametrize(("nth", "when"), RENAMES[:8])
def test_killed_between_renames_a_revert_loses_no_version(
    nth: int, when: str, made: tuple[Path, Path]
) -> None:
    model, file = made
    update_model(model, file)
    ended = killed_at(nth, when, lambda: revert_model(model))
    assert ended == (nth <= 3)
    with applying._alone(model.resolve()):
        pass
    assert {number(model), number(previous_of(model))} == {1, 2}
    if number(model) == 2:
        revert_model(model)
    revert_model(model)
    assert (number(model), number(previous_of(model))) == (2, 1)
    assert names(model) == {"model", "model.previous"}


def test_a_swap_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "exchanged", lambda *_: False)
    target = tmp_path / "model"
    target.mkdir()
    (target / "file").touch()
    with pytest.raises(FileNotFoundError):
        exchange.swap(tmp_path / "missing", target)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "file"]


def test_the_signature_is_asked_for(made: tuple[Path, Path], tmp_path: Path) -> None:
    model, file = made
    key, other = tmp_path / "key", tmp_path / "other"
    public = new_key(key)
    new_key(other)
    with pytest.raises(SignatureError, match=r"what .*new\.delta makes is not signed: there is no"):
        update_model(model, file, public)
    sign_model(tmp_path / "new", other)
    with pytest.raises(SignatureError, match="is not signed by the key"):
        update_model(model, delta_to(model, tmp_path / "new"), public)
    sign_model(tmp_path / "new", key)
    signed = (tmp_path / "new" / SIGNATURE).read_bytes()
    (tmp_path / "new" / SIGNATURE).write_bytes(signed.replace(b"a", b"b"))
    with pytest.raises(SignatureError):
        update_model(model, delta_to(model, tmp_path / "new"), public)
    assert number(model) == 1
    assert not previous_of(model).exists()
    (tmp_path / "new" / SIGNATURE).write_bytes(signed)
    assert update_model(model, delta_to(model, tmp_path / "new"), public)
    load_predictor(model, public_key=public)
    with pytest.raises(SignatureError, match=r"previous is not signed: there is no"):
        revert_model(model, public)
    assert number(model) == 2


def test_what_cannot_be_loaded_here_takes_no_place(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where ONNX Runtime is too old for the graph: all hashes are right."""
    model, _ = made
    (tmp_path / "new" / "model.onnx").write_bytes(b"a graph of the future")
    record(tmp_path / "new")
    monkeypatch.setattr(deltas, "load_predictor", lambda *_: None)
    monkeypatch.setattr(deltas, "_of_onnx", lambda _: {})
    with pytest.raises(CheckpointError, match=r"what .* makes holds no usable model") as caught:
        update_model(model, delta_to(model, tmp_path / "new"))
    assert "\n" not in str(caught.value)
    assert number(model) == 1
    assert names(model) == {"model"}


def _notes(model: Path) -> None:
    (model / "notes.txt").write_text("mine")


def _previous(model: Path) -> None:
    previous_of(model).mkdir()
    _notes(previous_of(model))


def _damaged(model: Path) -> None:
    content = (model / "model.onnx").read_bytes()
    (model / "model.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_notes, r"model holds 'notes\.txt', which a delta does not carry"),
        (_previous, r"model\.previous would be replaced, but holds notes\.txt"),
        (_damaged, r"is not the version that the delta was made from: model\.onnx has SHA-256"),
    ],
    ids=["notes", "previous", "damaged"],
)
def test_nothing_is_lost(
    harm: Callable[[Path], None], message: str, made: tuple[Path, Path]
) -> None:
    model, file = made
    harm(model)
    before = {path: path.read_bytes() for path in model.parent.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=message):
        update_model(model, file)
    after = {path: path.read_bytes() for path in model.parent.rglob("*") if path.is_file()}
    assert after == before


def test_one_at_a_time(made: tuple[Path, Path]) -> None:
    model, file = made
    handle = os.open(model.parent, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(CheckpointError, match="another process updates a model in"):
        update_model(model, file)
    os.close(handle)
    assert update_model(model, file)


def test_nothing_to_go_back_to(made: tuple[Path, Path]) -> None:
    model, file = made
    with pytest.raises(CheckpointError, match=r"there is no version before: .* is missing"):
        revert_model(model)
    update_model(model, file)
    model.rename(model.parent / "gone")  # as between two renames, where folders do not exchange
    revert_model(model)
    assert number(model) == 1
