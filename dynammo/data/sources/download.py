"""Fetch a file once: with a progress bar, a checksum, and the part that is there taken up again."""

from __future__ import annotations

import hashlib
import os
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from dynammo.errors import DataError

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30  # seconds without an answer


def downloads_folder() -> Path:
    """`downloads` in `.dynammo` of the current folder, or in the variable `DYNAMMO_HOME`."""
    return Path(os.environ.get("DYNAMMO_HOME", ".dynammo")).absolute() / "downloads"


def fetch(url: str, file: str, md5: str) -> Path:
    """A file in the downloads folder, downloaded first where it is missing.

    It is received as `<file>.part` and renamed when it is whole and its checksum is right. An
    interrupted download goes on where it stopped if the server can do so, else from the start; one
    that ends with a wrong checksum is thrown away and tried once more from the start. MD5 is what
    the publishers of the sets give; it shows damage, not forgery.

    Args:
        url: where it is.
        file: its name in the downloads folder.
        md5: of the whole file, hex.

    Returns:
        Its path.

    Raises:
        DataError: no connection, or a wrong checksum, of the file that is there or of the one
            received. The message says which file to put where.
    """
    path = downloads_folder() / file
    if path.exists():
        if (found := _md5(path)) != md5:
            raise DataError(
                f"{path} is damaged or another version: its MD5 is {found}, expected {md5}; "
                f"remove it to download it anew, or put the right one there ({url})"
            )
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{file}.part")
    found = ""
    for resume in (True, False):
        if not resume:
            part.unlink(missing_ok=True)
        try:
            _receive(url, part)
        except (URLError, HTTPException, OSError, ValueError) as error:
            reason = str(getattr(error, "reason", None) or error) or type(error).__name__
            raise DataError(
                f"cannot download {url} ({reason}); get it on another machine and put it at "
                f"{path} (MD5 {md5})"
            ) from None
        if (found := _md5(part)) == md5:
            part.replace(path)
            return path
    part.unlink()
    raise DataError(
        f"{url} is not what was expected: its MD5 is {found}, expected {md5}; get the right file "
        f"and put it at {path}"
    )


def _receive(url: str, part: Path) -> None:
    """Append what is missing of `part`; start anew where the server sends the whole file."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "dynammo", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        # The addresses stand in this folder's sources, all of https.
        response = urlopen(Request(url, headers=headers), timeout=_TIMEOUT)  # nosec B310
    except HTTPError as error:
        if have and error.code == 416:  # nothing is missing, or the file is a shorter one now
            return
        raise
    with response:
        if have and response.status != 206:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            part.open("ab" if have else "wb") as target,
            tqdm(
                desc=part.stem,
                total=total,
                initial=have,
                unit="B",
                unit_scale=True,
                disable=None,
                leave=False,
                dynamic_ncols=True,
            ) as bar,
        ):
            while chunk := response.read(_CHUNK):
                target.write(chunk)
                bar.update(len(chunk))
    if total is not None and (received := part.stat().st_size) != total:
        raise HTTPException(f"the connection broke after {received} of {total} bytes")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
