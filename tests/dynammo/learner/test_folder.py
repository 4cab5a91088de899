"""A learner on disk: versions, pointer, lock, and what a kill leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dynammo.checkpoint import Ref
from dynammo.learner.folder import LearnerError, LearnerFolder, learners


@pytest.fixture
def learner(tmp_path: Path) -> LearnerFolder:
    return LearnerFolder(tmp_path, "skin")


def saved(learner: LearnerFolder, value: float) -> Ref:
    return learner.store.save("adapter", {"a": torch.tensor([value])}, {})


def test_versions_are_numbered_and_the_pointer_moves_last(learner: LearnerFolder) -> None:
    assert not learner.exists
    first = learner.commit({"adapter": saved(learner, 1.0)}, champion=True)
    second = learner.commit({"adapter": saved(learner, 2.0)}, champion=False)
    assert (first, second) == (1, 2)
    pointer = learner.pointer()
    assert (pointer["current"], pointer["champion"]) == (2, 1)
    assert learner.current()["number"] == 2
    assert learner.numbers() == [1, 2]


def test_a_rolled_back_learner_goes_on_with_the_next_free_number(learner: LearnerFolder) -> None:
    for value in (1.0, 2.0):
        learner.commit({"adapter": saved(learner, value)}, champion=True)
    learner.rollback(1)
    assert learner.commit({"adapter": saved(learner, 3.0)}, champion=True) == 3
    reasons = [change["reason"] for change in learner.pointer()["champions"]]
    assert reasons == [None, None, "rollback", None]


def test_promotion_keeps_its_reason_and_what_is_current(learner: LearnerFolder) -> None:
    learner.commit({}, champion=True)
    learner.commit({}, champion=False)
    learner.commit({}, champion=False)
    learner.promote(2, "needed")
    pointer = learner.pointer()
    assert (pointer["current"], pointer["champion"]) == (3, 2)
    assert pointer["champions"][-1]["reason"] == "needed"
    with pytest.raises(LearnerError, match="skin has no version 9; there are: 1, 2, 3"):
        learner.promote(9)


def test_what_no_version_refers_to_is_removed(learner: LearnerFolder) -> None:
    kept = saved(learner, 1.0)
    learner.commit({"nested": [{"adapter": kept}]}, champion=True)
    gone = saved(learner, 2.0)
    (learner.work / "images").mkdir(parents=True)
    assert [path.name for path in learner.unused()] == [
        gone["path"].replace(".safetensors", ".json"),
        gone["path"],
    ]
    learner.tidy()
    assert learner.unused() == []
    assert not learner.work.exists()
    assert learner.store.load(kept)["a"].item() == 1.0


def test_damage_is_found(learner: LearnerFolder) -> None:
    kept = saved(learner, 1.0)
    learner.commit({"adapter": kept}, champion=True)
    assert learner.problems() == []
    learner.store.path(kept).write_bytes(b"")
    (problem,) = learner.problems()
    assert kept["path"] in problem


def test_one_process_at_a_time(learner: LearnerFolder) -> None:
    other = LearnerFolder(learner.path.parent, "skin")
    with (
        learner.lock(),
        pytest.raises(LearnerError, match=r"is being changed by process \d+"),
        other.lock(),
    ):
        pass
    with other.lock():
        pass


def test_the_key_is_made_once_and_for_its_owner_alone(learner: LearnerFolder) -> None:
    key = learner.key
    assert len(key) == 64
    assert learner.key == key
    assert (learner.path / "key").stat().st_mode & 0o777 == 0o600
    assert LearnerFolder(learner.path.parent, "blood").key != key
    assert learner.identity not in (key, LearnerFolder(learner.path.parent, "blood").identity)


def test_a_key_that_was_half_written_is_made_anew_but_never_of_a_learner_that_learnt(
    learner: LearnerFolder,
) -> None:
    learner.path.mkdir()
    (learner.path / "key").write_text("ab")
    assert len(learner.key) == 64
    learner.commit({}, champion=True)
    (learner.path / "key").write_text("ab")
    with pytest.raises(LearnerError, match="is damaged: expected 64 hexadecimal digits"):
        _ = learner.key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document | {"format": 7}, "is of format 7, this program reads 2"),
        (lambda document: [document], "is damaged"),
        (lambda document: {}, "is damaged"),
    ],
)
def test_a_pointer_that_cannot_be_read_is_refused(
    learner: LearnerFolder, change: Any, message: str
) -> None:
    learner.commit({}, champion=True)
    file = learner.path / "learner.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(LearnerError, match=message):
        learner.pointer()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a b", "a\n"])
def test_names_that_are_no_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LearnerError, match="is no name of a learner"):
        LearnerFolder(tmp_path, name)


def test_learners_are_listed(tmp_path: Path) -> None:
    for name in ("skin", "blood"):
        LearnerFolder(tmp_path, name).commit({}, champion=True)
    assert LearnerFolder(tmp_path, "empty").key  # not a learner yet
    assert learners(tmp_path) == ["blood", "skin"]
    with pytest.raises(LearnerError, match="there is no learner 'empty'"):
        LearnerFolder(tmp_path, "empty").pointer()
