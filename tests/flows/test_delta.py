"""`dynammo delta` and `dynammo apply-delta`: what they print, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dynammo.deploy.signature import new_key
from flows.cli import app
from tests.models import graph_folder


def dynammo(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return " ".join(result.output.split())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A delta between the models `old` and `new`."""
    old, new = graph_folder(tmp_path / "old"), graph_folder(tmp_path / "new", size=32)
    told = dynammo("delta", old, new, "-o", tmp_path / "update.delta")
    size = (tmp_path / "update.delta").stat().st_size
    assert "bytes in the delta" in told
    assert f"{size:,}" in told
    return tmp_path / "update.delta"


def test_there_and_back(file: Path) -> None:
    old = file.with_name("old")
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    assert "old.previous" in dynammo("apply-delta", old, file)
    assert (old / "model.json").read_bytes() == file.with_name("new").joinpath(
        "model.json"
    ).read_bytes()
    assert "is that version already" in dynammo("apply-delta", old, file)
    dynammo("apply-delta", old, "--revert")
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before


def test_what_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = file.with_name("old"), file.with_name("new")
    assert "give the file of a delta, or --revert" in dynammo("apply-delta", old, status=1)
    both = dynammo("apply-delta", old, file, "--revert", status=1)
    assert "give the file of a delta, or --revert" in both
    assert "no such" in dynammo("apply-delta", old, "nowhere", status=1).lower()
    assert "no such" in dynammo("apply-delta", "nowhere", file, status=1).lower()
    assert "no such" in dynammo("delta", old, "nowhere", "-o", file, status=1).lower()
    graph_folder(file.with_name("other"), size=64)
    refused = dynammo("apply-delta", file.with_name("other"), file, status=1)
    assert "is not the version that the delta was made from" in refused
    monkeypatch.setenv("DYNAMMO_PUBLIC_KEY", str(new_key(file.with_name("key"))))
    assert "is not signed" in dynammo("apply-delta", old, file, status=1)
    dynammo("sign", new, "--key", file.with_name("key"))
    dynammo("delta", old, new, "-o", file)
    assert "is updated" in dynammo("apply-delta", old, file)
