"""Clips: the frames of a video file, read with PyAV, one at a time.

Apart from the other volumes, for only who has clips needs PyAV.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dynammo.data.formats.pictures import Pixels, Window, from_array, through_window
from dynammo.extras import needs

if TYPE_CHECKING:
    from av import VideoFrame

CLIPS = frozenset({".mp4", ".mov", ".avi", ".mkv"})
# As DECODER_VERSION says of pictures, codecs change.
try:
    PYAV = version("av")
except PackageNotFoundError:
    PYAV = "none"
_QUARTER = 90  # degrees
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"


def kind_of(content: bytes) -> str | None:
    """FFmpeg's name of the container that a file's first bytes tell, or none.

    No other is opened: some, such as playlists, would have FFmpeg open further files.
    """
    if content[:4] == b"RIFF" and content[8:12] == b"AVI ":
        return "avi"
    if content[:4] == _EBML:
        return "matroska"
    # Before the index of an old MOV there may be what takes its place, or its pictures.
    return "mov" if content[4:8] in _BOXES else None


def decode_clip(
    content: bytes, kind: str, window: Window | None = None
) -> tuple[int, Iterator[Pixels]]:
    """How many frames a clip has, and each as it would be shown, (H, W, 3) uint8.

    Files say the number wrongly or not at all, so frames are counted first, which decodes them
    twice. Sound is left out; a clip that a telephone turned is turned upright. Grey values of more
    than 8 bits go through the window, or are scaled by their full range.

    Args:
        content: of the file.
        kind: as `kind_of` tells it.
        window: (black, white).

    Raises:
        ValueError: a file whose end is missing, no video stream, no frames, a damaged frame, one
            that is too large or turned by other than quarters; of the frames also while they are
            read. PyAV has errors of its own.
        MissingExtra: PyAV is not installed.
    """
    if (length := _length(content, kind)) > len(content):
        raise ValueError(f"truncated: it has {len(content)} of {length} bytes")
    total = sum(1 for _ in _frames(content, kind))
    if total == 0:
        raise ValueError("its video stream has no frames")
    return total, (_shown(frame, window) for frame in _frames(content, kind))


def _frames(content: bytes, kind: str) -> Iterator[VideoFrame]:
    with needs("volumes", "av"):
        import av

    with av.open(BytesIO(content), mode="r", format=kind) as container:
        stream: Any = container.streams.best("video")
        _prepare(stream)
        for number, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise ValueError(f"its frame {number} is damaged")
            yield frame


def _prepare(stream: Any) -> None:
    """Refuse what cannot be decoded. One thread: several images are read at once."""
    if stream is None:
        raise ValueError("it has no video stream")
    context, limit = stream.codec_context, Image.MAX_IMAGE_PIXELS
    if context is None:
        raise ValueError("its video stream is of a kind that cannot be decoded")
    if limit is not None:
        if context.width * context.height > limit:
            raise ValueError(
                f"{context.width} x {context.height} pixels exceed the limit of {limit}"
            )
        context.options = {"max_pixels": str(limit)}  # of what frames say of themselves
    stream.thread_type = "NONE"


def _shown(frame: VideoFrame, window: Window | None) -> Pixels:
    bits = frame.format.components[0].bits
    if frame.format.name.startswith("gray") and 8 < bits <= 16:
        values = frame.to_ndarray()
        full = (0.0, 2.0**bits - 1)
        pixels = from_array(through_window(values, window or full))
    else:
        pixels = from_array(frame.to_ndarray(format="rgb24"))
    turns, rest = divmod(frame.rotation, _QUARTER)
    if rest:
        raise ValueError(f"it is turned by {frame.rotation} degrees; expected quarters")
    return np.ascontiguousarray(np.rot90(pixels, turns))


def _length(content: bytes, kind: str) -> int:
    """How many bytes a file says it has: FFmpeg takes what is there of a file cut short."""
    return {"avi": _of_avi, "matroska": _of_matroska, "mov": _of_mov}[kind](content)


def _of_avi(content: bytes) -> int:
    """Chunks RIFF, the first of at most 1 GB and others after it (OpenDML 1.02)."""
    end = 0
    while content[end : end + 4] == b"RIFF":
        end += 8 + int.from_bytes(content[end + 4 : end + 8], "little")
    return end


def _of_mov(content: bytes) -> int:
    """Boxes: size, kind, and for size 1 the size in 8 bytes; 0: to the end (ISO 14496-12, 4.2)."""
    end = 0
    while end + 8 <= len(content):
        size = int.from_bytes(content[end : end + 4], "big")
        if size == 1:
            size = int.from_bytes(content[end + 8 : end + 16], "big")
        if size < 8:
            return len(content)
        end += size
    return end


def _of_matroska(content: bytes) -> int:
    """The header and the segment, each an id of 4 bytes, a size and so much (RFC 8794, 4 and 6)."""
    end = 0
    for name in (_EBML, _SEGMENT):
        start = end + 4
        first = content[start] if start < len(content) else 0
        octets = 9 - first.bit_length()  # as many as the first has leading zeros, and one
        size = int.from_bytes(content[start : start + octets], "big") & ((1 << 7 * octets) - 1)
        if content[end:start] != name or size == (1 << 7 * octets) - 1:
            return len(content)  # not known when it was written
        end = start + octets + size
    return end
