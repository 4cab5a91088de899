"""Video files of any frames, made with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def clip(
    file: Path,
    frames: Sequence[NDArray[np.uint8]],
    codec: str = "mpeg4",
    pixels: str = "yuv420p",
    **options: str,
) -> Path:
    """A video file of frames (H, W, 3)."""
    import av

    with av.open(str(file), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        for own in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(own, format="rgb24")))
        container.mux(stream.encode())
    return file
