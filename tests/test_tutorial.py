"""The tutorial does what it says, typed line by line."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dynammo.deploy.graph import has_graph
from flows.cli import app
from flows.page.view import timeline
from tasks.support.version import find_learner

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial" / "first-learner.md"


def blocks() -> list[str]:
    """Its commands, block by block."""
    text = TUTORIAL.read_text(encoding="utf-8")
    return [
        re.sub("^    ", "", block, flags=re.MULTILINE)
        for block in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    ]


def typed(block: str) -> str:
    """What a block prints: `dynammo` in this process, all else in a shell."""
    said, shell = [], []
    for line in [*block.splitlines(), ""]:
        if not line.startswith("dynammo ") and line:
            shell.append(line)
            continue
        subprocess.run(["bash", "-ec", "\n".join(shell)], check=True)
        shell.clear()
        if line:
            result = CliRunner().invoke(app, shlex.split(line)[1:])
            assert result.exit_code == 0, f"{line}\n{result.output}"
            said.append(result.output)
    return "".join(said)


def test_first_learner(
    tmp_path: Path, tracking: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare, first, second, forget = blocks()
    typed(prepare)
    for folder in Path().glob("**/[0-9]"):  # a few of each digit, and the story is the same
        for picture in sorted(folder.iterdir())[12:]:
            picture.unlink()
    small = " --set backbone.name=test_efficientnet --set backbone.pretrained=false"
    typed(first.replace("batches/first --set", f"batches/first{small} --set"))
    assert not Path("batches/first").exists()
    answers = typed(second)
    assert answers.count("data/digits/test/5/") == 12
    assert "champion" in typed(forget)
    versions = timeline(find_learner("numbers"))[::-1]
    assert [version.gained for version in versions] == [list("0123"), list("456"), []]
    assert versions[-1].lost == list("456")
    assert "champion" in versions[-1].marks
    assert has_graph(find_learner("numbers").path / "model")
