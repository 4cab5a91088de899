"""The prediction log: which model said what of which image, and when, a line each, never changed.

A line is JSON with its own SHA-256 (`hash`) and that of the line before (`before`), so that what
was changed, taken out, put in or moved is found. Who can write the file can make a whole chain
anew, or take lines from its end: that shows only against a hash (the head) kept elsewhere.

A line that a killed process left unfinished stays: it is closed by ` (cut off)`, and the next line
has the SHA-256 of what was cut off.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

from dynammo.checkpoint import to_json, write_atomically
from dynammo.data.formats.pictures import Pixels
from dynammo.deploy.answers import Answer
from dynammo.errors import SignatureError

LOG = "DYNAMMO_PREDICTION_LOG"  # environment variable: a file
BEGINNING = "0" * 64  # what the first line has as the hash of the line before
_CUT = b" (cut off)\n"
_BLOCK = 1 << 16


class PredictionLog:
    """A file that answers are appended to, by as many processes as like.

    Args:
        file: made if missing.
        model: SHA-256 of the `model.json` that answers.

    Raises:
        OSError: it cannot be written.
        SignatureError: its last line is not as it was written.
    """

    def __init__(self, file: str | Path, model: str) -> None:
        self.file, self.model = Path(file), model
        with self._locked() as stream:
            self._end(stream)

    def append(self, answers: Sequence[tuple[str, Answer]]) -> None:
        """Add a line an answer. They are on the disk (fsync) when this returns: give answers after.

        Args:
            answers: SHA-256 of the image (`hash_pixels`, or of its file) and what was said of it.

        Raises:
            OSError: they cannot be written; then no answer should be given.
            SignatureError: somebody has changed the last line.
        """
        with self._locked() as stream:
            head, cut = self._end(stream)
            lines = []
            if cut:
                lines = [b"" if cut.endswith(_CUT) else _CUT]
                cut += lines[0]
                logging.getLogger(__name__).warning(
                    "%s: its last line is cut off, as when a process is killed; marked as such",
                    self.file,
                )
            for image, answer in answers:
                record = {
                    "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    "model": self.model,
                    "input": image,
                    **answer._asdict(),
                    "before": head,
                }
                if cut:
                    record["cut_off"], cut = hashlib.sha256(cut).hexdigest(), b""
                head = _hash(record)
                lines.append(_line({**record, "hash": head}))
            content = b"".join(lines)
            while content:
                content = content[stream.write(content) :]
            os.fsync(stream.fileno())

    @contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        # Opened each time: a file that was moved away is not written to any more.
        with self.file.open("a+b", buffering=0) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield stream

    def _end(self, stream: IO[bytes]) -> tuple[str, bytes]:
        """The hash of the last whole line, and what was cut off behind it."""
        size, block = stream.seek(0, os.SEEK_END), _BLOCK
        while True:
            stream.seek(max(0, size - block))
            lines = stream.read().splitlines(keepends=True)
            if size > block:
                del lines[0]  # its beginning was not read
            cut = b""
            while lines and _is_cut(lines[-1]):
                cut = lines.pop() + cut
            if lines or size <= block:
                break
            block *= 4
        if not lines:
            return BEGINNING, cut
        if (record := _record(lines[-1])) is None:
            raise SignatureError(
                f"{self.file}: its last line has been changed; no prediction is added to it "
                "(dynammo verify-log says more)"
            )
        return record["hash"], cut


class Verified(NamedTuple):
    """A chain that is whole: the number of `predictions`, the `head`, which lines are `cut_off`,
    and how many predictions came `since` the head that was given; none if none was.
    """

    predictions: int
    head: str
    cut_off: list[int]
    since: int | None


def verify_log(file: str | Path, head: str | None = None) -> Verified:
    """Check every line of a prediction log.

    Args:
        file: of the log.
        head: a hash that was the head once.

    Raises:
        OSError: it cannot be read.
        SignatureError: the first line that is not as it was written, or the log does not hold that
            head.
    """
    count, last, cut, open_ = 0, BEGINNING, b"", []
    cut_off: list[int] = []
    since = 0 if head == BEGINNING else None
    with Path(file).open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)  # what is being written must not look cut off
        size = stream.seek(0, os.SEEK_END)
        fcntl.flock(stream, fcntl.LOCK_UN)  # who answers meanwhile does not wait
        stream.seek(0)
        for number, line in enumerate(stream, start=1):
            if size <= 0:
                break
            size -= len(line)
            if _is_cut(line):
                cut += line
                open_.append(number)
                continue
            problem = None
            if (record := _record(line)) is None:
                problem = "it is not as it was written"
            elif record["before"] != last:
                problem = "it does not follow the line before: some were taken out, put in or moved"
            elif record.get("cut_off") != (hashlib.sha256(cut).hexdigest() if cut else None):
                problem = "it does not follow the lines before that are cut off"
            if problem or record is None:
                raise SignatureError(
                    f"{file}, line {number}: {problem}; {count} before it are whole"
                )
            count, last, cut = count + 1, record["hash"], b""
            cut_off, open_ = cut_off + open_, []
            since = 0 if last == head else since if since is None else since + 1
    if open_:
        raise SignatureError(
            f"{file}, line {open_[0]}: it is cut off, as when a process is killed or somebody cuts "
            f"it; {count} before it are whole, and the next prediction marks it"
        )
    if head is not None and since is None:
        raise SignatureError(
            f"{file} does not hold {head}: lines were taken from its end, or it was made anew"
        )
    return Verified(count, last, cut_off, since)


def sign_head(file: Path, key: Path) -> Verified:
    """Sign where a log is: `FILE.head.json` has its head and how many predictions it holds, and
    `FILE.head.signature.json` is over that.

    A head that was signed before must still be in the log, and what it counts.

    Args:
        file: of the log.
        key: file of the private key.

    Raises:
        OSError: a file cannot be read or written.
        SignatureError: the log is not whole or lacks the head signed before, or the key is none.
    """
    from dynammo.deploy.signature import sign

    head, signature = signed_head(file)
    found = verify_log(file, _read_head(head)["head"] if head.exists() else None)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    document = {"head": found.head, "predictions": found.predictions, "at": at}
    write_atomically(head, to_json(document))
    sign(head.parent, [head.name], key, signature)
    return found


def verify_signed(file: Path, key: Path) -> tuple[Verified, str]:
    """Check a log line by line, and that it still holds the head that was signed last.

    That finds lines taken from its end, unless the files of an older signature are put in the place
    of the last: the time of the signature shows that.

    Args:
        file: of the log.
        key: file of the public key.

    Returns:
        `since` counts from the signature; and when that was made.

    Raises:
        OSError: the log cannot be read.
        SignatureError: as of `verify_log`, or the head is not signed by the key.
    """
    from dynammo.deploy.signature import verify

    head, signature = signed_head(file)
    verify(head.parent, [head.name], key, signature, f"the head of {file}")
    document = _read_head(head)
    found = verify_log(file, document["head"])
    if found.since != found.predictions - document["predictions"]:
        raise SignatureError(f"{file} holds other predictions than those whose head was signed")
    return found, document["at"]


def signed_head(file: Path) -> tuple[Path, Path]:
    """Where a log's signed head is, and its signature."""
    return file.with_name(f"{file.name}.head.json"), file.with_name(
        f"{file.name}.head.signature.json"
    )


def _read_head(head: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(head.read_text(encoding="utf-8"))
        if not isinstance(document["predictions"], int) or not isinstance(document["at"], str):
            raise TypeError
        if not re.fullmatch("[0-9a-f]{64}", document["head"]):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SignatureError(f"{head} is no head of a prediction log") from None
    return document


def hash_pixels(pixels: Pixels) -> str:
    """SHA-256 of an image that came as an array: of (H, W, 3) uint8 as a PPM file would hold it."""
    height, width, _ = pixels.shape
    return hashlib.sha256(b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes()).hexdigest()


def _is_cut(line: bytes) -> bool:
    return line.endswith(_CUT) or not line.endswith(b"\n")


def _line(document: Mapping[str, Any]) -> bytes:
    """The same bytes for the same content."""
    return (json.dumps(document, sort_keys=True, allow_nan=False) + "\n").encode()


def _hash(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(_line(record)).hexdigest()


def _record(line: bytes) -> dict[str, Any] | None:
    """What a line says; none if it is not byte for byte what was written."""
    try:
        document = json.loads(line)
        given = document.pop("hash")
        own = _hash(document)
        whole = given == own and _line({**document, "hash": own}) == line and "before" in document
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None
    return {**document, "hash": given} if whole else None
