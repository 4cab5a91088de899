"""One change of the learner at a time, as the command that a user would type."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence

from dynammo.errors import DynammoError

_COMMAND = "from flows.command import app; app()"
_LINES = 200
_LAST_SECONDS = 2
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Busy(DynammoError):
    """Another change is still running."""


class Jobs:
    """Runs `dynammo ...` in a process of its own; its flow runs are in Prefect as any others are.

    The last change that was started can be asked for its lines and its exit status.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._command = ""

    def start(self, arguments: Sequence[str]) -> None:
        """Start a command.

        Args:
            arguments: after `dynammo`.

        Raises:
            Busy: one is running.
        """
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                raise Busy(f"{self._command} is still running")
            self._command = shlex.join(["dynammo", *arguments])
            self._lines.clear()
            self._process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
            )
            self._reader = threading.Thread(target=self._follow, args=[self._process], daemon=True)
            self._reader.start()

    def state(self) -> dict[str, object]:
        """`command` (empty before the first), `lines`, and `status`: none while it runs."""
        status = self._process.poll() if self._process else 0
        if status is not None and self._reader is not None:
            self._reader.join(_LAST_SECONDS)  # the last lines may still have to be read
        return {"command": self._command, "lines": list(self._lines), "status": status}

    def stop(self) -> None:
        """End what is running in order: the same command goes on later."""
        if self._process is not None and self._process.poll() is None:
            # Not SIGINT: what runs in the background may ignore it, and hands that on.
            self._process.terminate()

    def close(self) -> None:
        """Stop, and wait for the end."""
        self.stop()
        if self._process is not None:
            self._process.wait()

    def _follow(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if text := _COLOURS.sub("", line).rstrip():
                self._lines.append(text)
        process.wait()
