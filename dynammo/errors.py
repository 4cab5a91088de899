"""Every error this package raises on purpose, so that callers can tell them from bugs."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 200  # characters of a value


class DynammoError(Exception):
    """Base class. The message is one readable line (or a list of lines) meant for the user."""


class ConfigError(DynammoError):
    """A configuration that cannot be run. Carries every problem found, not only the first."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        count = len(self.problems)
        head = "1 configuration error" if count == 1 else f"{count} configuration errors"
        super().__init__("\n".join([f"{head}:", *(f"  - {problem}" for problem in self.problems)]))


class DataError(DynammoError):
    """Images or manifests that cannot be used. Carries every problem found, not only the first."""

    def __init__(self, problems: Sequence[str] | str, shown: int = 20) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        lines = self.problems[:shown]
        if len(self.problems) > shown:
            lines.append(f"... and {len(self.problems) - shown} more")
        if len(lines) == 1:
            super().__init__(lines[0])
        else:
            head = f"{len(self.problems)} problems in the data:"
            super().__init__("\n".join([head, *(f"  - {line}" for line in lines)]))


class CheckpointError(DynammoError):
    """A checkpoint that is missing, damaged, or does not fit what it is loaded into."""


class SignatureError(DynammoError):
    """What must be signed is not, or not by the key that counts; or a log that was changed."""


class WeightsError(DynammoError):
    """Pretrained weights were asked for and none can be had."""


class ExportError(DynammoError):
    """A model that cannot be exported, or whose export does not predict what the model predicts."""


def shown(value: object) -> str:
    """A value as it is quoted in an error: as Python writes it, and no longer than a line."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def expected_line(error: BaseException) -> str | None:
    """What to tell the user of an error that is no bug; None for one that may be.

    Those are this package's own, and what the machine has too little of: a full disk, a folder that
    cannot be written to, memory, the stack.
    """
    if isinstance(error, DynammoError):
        return str(error)
    if isinstance(error, OSError):
        places = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([" -> ".join(places)] * bool(places) + [error.strerror or str(error)])
    if isinstance(error, MemoryError) or _lacks_memory(error):
        return "the memory does not suffice; smaller images, batches or train.cache_mb need less"
    if isinstance(error, RecursionError):
        return "something that was read is nested too deeply"
    return None


def _lacks_memory(error: BaseException) -> bool:
    """PyTorch says so of the processor's memory and of the GPU's, each in its own way."""
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "DefaultCPUAllocator: can't allocate memory" in text
    )
