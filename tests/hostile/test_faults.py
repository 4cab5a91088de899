"""Every write of a learner's version fails once: the learner is at the one before or after."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from dynammo.learner.folder import LearnerFolder

_REAL = {
    (os, "replace"): os.replace,
    (os, "fsync"): os.fsync,
    (os, "fdopen"): os.fdopen,
    (tempfile, "mkstemp"): tempfile.mkstemp,
}


class Fault:
    """Lets the calls of the file system through but one, which fails as a full disk does."""

    def __init__(self, patch: pytest.MonkeyPatch, failing: int | None, code: int) -> None:
        self.calls = 0
        self.failing = failing
        self.code = code
        for (module, name), real in _REAL.items():
            patch.setattr(module, name, self._through(name, real))

    def _through(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            self.calls += 1
            if self.calls != self.failing:
                return real(*arguments, **more)
            if name == "fdopen":
                return self._half(real(*arguments, **more))
            raise OSError(self.code, os.strerror(self.code))

        return call

    def _half(self, file: IO[bytes]) -> IO[bytes]:
        """A file that takes half of what is written to it."""

        def write(content: bytes) -> int:
            os.write(file.fileno(), content[: len(content) // 2])
            raise OSError(self.code, os.strerror(self.code))

        file.write = write  # type: ignore[method-assign,assignment]
        return file


def learn(folder: LearnerFolder, value: float) -> None:
    """What a step writes: objects, a version that refers to them, the pointer."""
    adapter = folder.store.save("adapter", {"a": torch.full((4,), value)}, {"batch": value})
    metrics = folder.store.save_json("metrics", {"recall": value})
    folder.commit({"adapter": adapter, "metrics": metrics}, champion=True)


def tree(folder: Path) -> dict[str, bytes]:
    # When a champion was made is in the pointer, and differs.
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "learner.json"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def count_calls(tmp_path: Path) -> int:
    folder = LearnerFolder(tmp_path, "counted")
    learn(folder, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        fault = Fault(patch, None, errno.EIO)
        learn(folder, 2.0)
    return fault.calls


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full disk", "input/output"])
def test_a_learner_is_whole_whichever_write_fails(tmp_path: Path, code: int) -> None:
    undisturbed = LearnerFolder(tmp_path, "undisturbed")
    for value in (1.0, 2.0):
        learn(undisturbed, value)
    calls = count_calls(tmp_path)
    assert calls > 10
    for failing in range(1, calls + 1):
        folder = LearnerFolder(tmp_path, f"at{failing}")
        learn(folder, 1.0)
        with pytest.MonkeyPatch.context() as patch:
            Fault(patch, failing, code)
            with pytest.raises(OSError, match=os.strerror(code)):
                learn(folder, 2.0)
        # The last calls wait for the disk when the pointer has moved: the version after, then.
        assert folder.pointer()["current"] == (2 if failing > calls - 2 else 1), failing
        assert not folder.problems()
        # The next try ends where one ends that nothing disturbed; the number may be a later one.
        learn(folder, 2.0)
        assert not folder.problems()
        current, expected = folder.current(), undisturbed.current()
        assert current["adapter"] == expected["adapter"]
        assert current["metrics"] == expected["metrics"]
        folder.tidy()
        left = [name for name in tree(folder.path) if ".safetensors." in name or "/." in name]
        assert not left, failing
