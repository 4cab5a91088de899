"""A learner that is signed, goes on, and was changed by somebody."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import mlflow.pyfunc
import pytest
from typer.testing import CliRunner

from dynammo.errors import SignatureError
from flows.cli import app
from tasks.fetch_learner import fetch_learner
from tasks.sign_learner import check_signed
from tasks.support.version import find_learner
from tests.flows.project import OVERRIDES, TASKS

pytestmark = pytest.mark.usefixtures("prefect_server")


def dynammo(*arguments: str | Path, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return result.output


def test_learn_goes_on_from_what_is_signed(
    here: Path, arrive: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"{key}={value}" for key, value in {**OVERRIDES, "gate": {}}.items()]
    settings += ["tracking.register_model=true", "tracking.onnx_graph=false"]
    chosen = [part for own in settings for part in ("--set", own)]
    asked = ("--public-key", here / "key.pub")
    dynammo("learn", "shapes", arrive("batch1", TASKS[0]), *chosen)
    refused = dynammo("learn", "shapes", arrive("batch2", TASKS[1]), *asked, status=1)
    assert "cannot read the key" in refused
    told = dynammo("sign", "shapes", "--new-key", "--key", here / "key")
    assert "BEGIN" not in told and "versions 1" in told
    folder, public = find_learner("shapes"), str(here / "key.pub")

    # The registered model is signed with it, and so is the learner in that.
    monkeypatch.setenv("DYNAMMO_PUBLIC_KEY", public)
    mlflow.pyfunc.load_model("models:/dynammo-shapes/1")
    copy = find_learner("copy")
    fetch_learner("models:/dynammo-shapes/1", copy)
    check_signed(copy, None)

    chance = random.Random(0)

    def each_bit_is_found(files: list[Path]) -> None:
        for _ in range(100):
            file = chance.choice(files)
            whole = file.read_bytes()
            changed = bytearray(whole)
            changed[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
            file.write_bytes(changed)
            with pytest.raises(
                Exception, match=r"signed|signature|damaged|format|version|cannot read"
            ):
                check_signed(folder, public)
            file.write_bytes(whole)

    # Of a hundred random bits of the version, its objects and its signature each is found.
    files = [
        *(folder.path / "versions").iterdir(),
        *(folder.path / "signatures").iterdir(),
        folder.path / "learner.json",
        *folder.store.folder.iterdir(),
    ]
    each_bit_is_found(files)

    # The next version is signed by nobody yet.
    dynammo("learn", "shapes", here / "batch2", *asked)
    # Nobody is answered by it before that, champion or not.
    assert folder.pointer()["champion"] == 2
    model = ("--model", folder.path / "model", here / "batch2")
    assert "is not signed" in dynammo("predict", *model, "--public-key", public, status=1)
    with pytest.raises(SignatureError, match="shapes, version 2 is not signed: there is no"):
        check_signed(folder, public)
    assert "is not signed" in dynammo("learn", "shapes", arrive("batch3", TASKS[2]), status=1)
    assert "is not signed" in dynammo("forget", "shapes", "--tasks", "1", status=1)
    assert "is not signed" in dynammo("merge", "shapes", "--tasks", "2", status=1)
    assert "version 2 is not signed" in dynammo(
        "promote", "shapes", "2", "--reason", "a try", status=1
    )
    assert folder.numbers() == [1, 2]
    # One that was signed may take its place at any time.
    dynammo("rollback", "shapes", "1")
    assert folder.pointer()["current"] == 1

    # But whoever learns has no key, and learning goes on when the key's owner agrees to that.
    refused = dynammo("learn", "shapes", here / "batch3", status=1)
    assert "what is in use of shapes: learner.json is not the one that was signed" in refused
    dynammo("sign", "shapes", "--key", here / "key")
    dynammo("learn", "shapes", here / "batch3")
    assert folder.pointer()["current"] == 3

    # A plan in force is signed, too: each of a hundred bits of it and of what says so.
    (here / "plan.yaml").write_text(dynammo("plan", "shapes", "--draft"))
    dynammo("plan", "shapes", here / "plan.yaml")
    with pytest.raises(SignatureError, match=r"version 3 is not signed"):
        check_signed(folder, public)
    dynammo("sign", "shapes", "--key", here / "key")
    check_signed(folder, public)
    files = [folder.path / "learner.json", folder.path / "signatures" / "learner.json"]
    files.append(folder.store.path(folder.pointer()["plans"][-1]["plan"]))
    each_bit_is_found(files)
    check_signed(folder, public)
