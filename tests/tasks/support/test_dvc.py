"""`data.dvc` follows `data/`, in a repository of Git and DVC. Each DVC command takes seconds."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dynammo.errors import DataError
from tasks.support.dvc import tracked_but_missing, version_with_dvc

LOGGER = logging.getLogger("test")


def version(folder: Path, made_anew: bool = False) -> dict[str, Any]:
    return version_with_dvc(folder, made_anew, LOGGER)


def recorded(repository: Path) -> str:
    (out,) = yaml.safe_load((repository / "data.dvc").read_text())["outs"]
    md5: str = out["md5"]
    return md5


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that does not track its images yet."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("data/skin/train", "data/skin/test", "images"):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.png").write_bytes(name.encode())
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def first(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The repository after its images were versioned, and what was said of them."""
    folder = tmp_path_factory.mktemp("versioned") / "repository"
    shutil.copytree(empty, folder)
    return folder, version(folder / "data" / "skin")


@pytest.fixture
def repository(first: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    shutil.copytree(first[0], tmp_path / "repository")
    return tmp_path / "repository"


def test_the_first_run_makes_the_first_version(first: tuple[Path, dict[str, Any]]) -> None:
    repository, found = first
    assert found == {"tracked": True, "md5": recorded(repository), "size": 29, "files": 2}
    assert "/data" in (repository / ".gitignore").read_text().split()


@pytest.mark.parametrize("made_anew", [False, True])
def test_an_unchanged_folder_is_left_alone(
    repository: Path, made_anew: bool, caplog: pytest.LogCaptureFixture
) -> None:
    before = (repository / "data.dvc").stat()
    found = version(repository / "data" / "skin", made_anew)
    after = (repository / "data.dvc").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert found["md5"] == recorded(repository)
    assert not caplog.records


def test_a_changed_folder_is_a_new_version(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = recorded(repository)
    (repository / "data" / "skin" / "train" / "b.png").write_bytes(b"another")
    found = version(repository / "data" / "skin")
    assert before != recorded(repository) == found["md5"]
    assert found["files"] == 3
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"data.dvc went from {before} to {found['md5']}; commit it" in record.getMessage()


def test_images_made_anew_must_be_the_recorded_version(repository: Path) -> None:
    before = (repository / "data.dvc").read_bytes()
    digits = repository / "data" / "digits"
    assert not tracked_but_missing(digits)  # other images of data/ are there
    shutil.rmtree(repository / "data")
    for _ in range(2):  # the second try is refused as the first was
        assert tracked_but_missing(digits)
        digits.mkdir(parents=True)
        (digits / "0.pgm").write_bytes(b"0")
        with pytest.raises(DataError, match=r"not the version that .*'dvc pull'") as caught:
            version(digits, made_anew=True)
        assert yaml.safe_load(before)["outs"][0]["md5"] in str(caught.value)
        assert (repository / "data.dvc").read_bytes() == before


def test_inside_a_stage_nothing_is_written(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (repository / "data.dvc").read_bytes()
    (repository / "data" / "skin" / "train" / "b.png").write_bytes(b"another")
    monkeypatch.setenv("DVC_STAGE", "incremental")
    assert version(repository / "data" / "skin")["md5"] == recorded(repository)
    assert (repository / "data.dvc").read_bytes() == before


def test_images_elsewhere_are_not_versioned(empty: Path, tmp_path: Path) -> None:
    for folder in (empty / "images", tmp_path):
        why = f"{folder} is in no folder that a .dvc file tracks"
        assert version(folder) == {"tracked": False, "why": why}
    assert not (empty / "images.dvc").exists()


def test_a_folder_that_another_dvc_file_tracks(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    outs = "outs: [{md5: abc.dir, size: 3, nfiles: 1, path: images}]\n"
    (tmp_path / "images.dvc").write_text(outs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_STAGE", "incremental")
        found = version(tmp_path / "images" / "skin" / "train")
    assert found == {"tracked": True, "md5": "abc.dir", "size": 3, "files": 1}


@pytest.mark.parametrize("text", ["", "outs: []", "outs: [{path: data}]", "a: [", "[1]"])
def test_a_damaged_record_is_named(repository: Path, text: str) -> None:
    (repository / "data.dvc").write_text(text)
    with pytest.raises(DataError, match=r"data\.dvc is not a DVC file with one output"):
        version(repository / "data" / "skin")


def test_what_dvc_says_is_quoted(repository: Path) -> None:
    (repository / ".dvc" / "config").write_text("[core\n")
    with pytest.raises(DataError, match=r"'dvc status --json data\.dvc' failed: .*config"):
        version(repository / "data" / "skin")
