"""From whatever holds a picture to the pixels that the network sees.

Training and serving both decode and resize here, so both see the same pixels, unless who asks for
answers chose faster decoding of JPEG.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dynammo.errors import DataError

Pixels = NDArray[np.uint8]
Window = tuple[float, float]  # the values that are black and white


class Form(NamedTuple):
    """What every image is brought to, so that all have one shape.

    `size`: side in pixels. `slices`: of a volume (`dynammo.data.formats.volumes`), which become a
    strip, one below the other; 1: images are pictures. `window`: the values that are black and
    white, of images with other than 8 bits; none: what the file says of itself.
    """

    size: int
    slices: int = 1
    window: Window | None = None

    @classmethod
    def of(cls, size: int, slices: int, window: Sequence[float] | None) -> Form:
        """With the window as files have it, a list."""
        return cls(size, slices, (window[0], window[1]) if window else None)

    @property
    def volumes(self) -> bool:
        """Whether images are volumes."""
        return self.slices > 1

    @property
    def height(self) -> int:
        """Of the strip, in pixels."""
        return self.slices * self.size

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, size, 3)."""
        return self.height, self.size, 3


def form_of(form: Form | int) -> Form:
    """A form, given it or the side of pictures."""
    return Form(form) if isinstance(form, int) else form


class HashedFile:
    """A file whose SHA-256 is known once it was decoded: of the very bytes that were.

    Attributes:
        sha256: empty before.
    """

    def __init__(self, file: str | Path) -> None:
        self.file, self.sha256 = Path(file), ""

    def __str__(self) -> str:
        return str(self.file)

    def read_bytes(self) -> bytes:
        """The whole file."""
        content = self.file.read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        return content

    def read(self) -> bytes | Stack:
        """The whole file, or all files of a folder that is one volume."""
        if not self.file.is_dir():
            return self.read_bytes()
        stack = read_stack(self.file)
        self.sha256 = stack_hash(stack)
        return stack


Stack = list[tuple[str, bytes]]  # a folder's files: names, in their order, and contents
Source = str | Path | HashedFile | bytes | NDArray[Any] | Image.Image

# Change the number when `decode` or `resize` gives other pixels. The versions of Pillow and pydicom
# are part of it: their codecs and filters change too. Without the extra "dicom" none is decoded.
try:
    _DICOM = version("pydicom")
except PackageNotFoundError:
    _DICOM = "none"
DECODER_VERSION = f"1-pillow-{PIL.__version__}-pydicom-{_DICOM}"

# Only these are opened: others are no pictures to learn from, and some (EPS) run programs.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM")
_DRAFT = 3  # times the network's size that a JPEG is at least decoded to, where it is scaled
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF tags


def is_dicom(content: bytes) -> bool:
    """Whether a file has DICOM's mark (PS3.10, 7.1)."""
    return content[128:132] == b"DICM"


def read_stack(folder: Path) -> Stack:
    """What is in the files of a folder that is one volume."""
    return [(file.name, file.read_bytes()) for file in slice_files(folder)]


def slice_files(folder: Path) -> list[Path]:
    """The files of a folder that is one volume, hidden ones left out, in order of name."""
    return sorted(file for file in folder.iterdir() if file.name[0] != "." and file.is_file())


def stack_hash(stack: Stack) -> str:
    """SHA-256 (hex) of a folder that is one volume: of its files' names and their SHA-256."""
    digest = hashlib.sha256()
    for name, content in stack:
        digest.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def decode(
    source: Source,
    name: str | None = None,
    enough: int | None = None,
    window: Window | None = None,
) -> Pixels:
    """Any picture as RGB.

    - The EXIF orientation is applied; colour profiles are ignored.
    - Transparency (an alpha channel, a transparent colour) is laid on black: no light there, as in
      the frame of a dermoscope or a fundus camera.
    - 16-bit greyscale is scaled by its full range, v -> v // 257 (v -> 255 v // 4095 for 12-bit
      TIFF); 16-bit colour is cut to its high bytes by Pillow. The range of 32-bit integers, signed
      integers and floating-point files cannot be known: refused without a window.
    - DICOM files are shown as `dynammo.data.formats.dicom.decode_dicom` says.
    - Animations and stacks of pages are refused. Of a camera's MPO file the main picture is taken.

    Args:
        source: path, `HashedFile`, encoded file as bytes, PIL image, or array (H, W), (H, W, 1),
            (H, W, 3) or (H, W, 4): uint8, uint16 (v -> v // 257) or floats in [0, 1]
            (v -> round(255 v)).
        name: what to call it in an error; default: the path.
        enough: pixels a side. A JPEG is decoded to 1/2, 1/4 or 1/8 of its sides, the least that
            is no smaller: a part of the work (scaled inverse DCT, libjpeg's scale_num).
        window: (a, b), a < b: grey values v of more than 8 bits, of DICOM those after the modality
            LUT, are shown as round(255 (v - a) / (b - a)), clipped; other images as ever.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: unreadable, truncated, larger than Pillow's limit against decompression bombs, or
            of a kind refused above.
    """
    if name is None:
        name = name_of(source)
    try:
        if isinstance(source, np.ndarray):
            return from_array(source, window)
        if isinstance(source, Image.Image):
            return from_pil(source, window=window)
        if not isinstance(source, str | Path | HashedFile | bytes):
            raise TypeError(f"{type(source).__name__} is no path, bytes, array or PIL image")
        source = Path(source) if isinstance(source, str) else source
        content = source if isinstance(source, bytes) else source.read_bytes()
        if is_dicom(content):
            # Imported here: pydicom is not needed where there is no DICOM.
            from dynammo.data.formats.dicom import decode_dicom

            return from_array(decode_dicom(content, window))
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            return from_pil(image, enough, window)
    except UnidentifiedImageError:
        problem = f"not a readable {', '.join(FORMATS)} or DICOM file"
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged bytes
        problem = getattr(error, "strerror", None) or str(error) or type(error).__name__
    raise DataError(f"cannot read {name}: {problem}")


def resize(image: Pixels, size: int) -> Pixels:
    """Resize (H, W, 3) uint8 to (size, size, 3): antialiased bicubic; the aspect is squashed."""
    scaled = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    return np.array(scaled)


def as_given(image: Pixels, form: Form) -> Pixels:
    """What `load_image` made, as it takes it again: a volume's slices, (S, size, size, 3)."""
    return image.reshape(form.slices, form.size, form.size, 3) if form.volumes else image


def sheet(image: NDArray[Any]) -> NDArray[Any]:
    """A strip (S * W, W, ...) as people look at one: slices in rows of about as many as there are
    rows, each from left to right; what is missing is 0. A picture (W, W, ...) is as it is.
    """
    size = image.shape[1]
    count = len(image) // size
    across = int(np.ceil(np.sqrt(count)))
    down = -(-count // across)
    slices = np.zeros((down * across, size, size, *image.shape[2:]), image.dtype)
    slices[:count] = image.reshape(count, size, size, *image.shape[2:])
    rows = slices.reshape(down, across, size, size, *image.shape[2:]).swapaxes(1, 2)
    return rows.reshape(down * size, across * size, *image.shape[2:])


def name_of(source: object) -> str:
    """What to call an image in an error."""
    return str(source) if isinstance(source, str | Path | HashedFile) else "the image"


def load_image(source: Source, form: Form | int, fast_jpeg: bool = False) -> Pixels:
    """`decode`, then `resize`; or, of a volume, `dynammo.data.formats.volumes.load_volume`.

    (height, size, 3) uint8, as the form or the side of pictures says. Raises `DataError` as they
    do.

    With `fast_jpeg`, a JPEG of at least six times the size is decoded to no less than three times
    it. Pixels then differ, and some answers with them (how many: benchmarks/decoding.py).
    """
    form = form_of(form)
    return fitted(opened(source, form, enough=_DRAFT * form.size if fast_jpeg else None), form)


def opened(
    source: Source | Stack, form: Form, name: str | None = None, enough: int | None = None
) -> Pixels:
    """A picture in its own size, as `decode` gives it; of a volume its strip. `fitted` does the
    rest. Raises `DataError` as `load_image` does.
    """
    if form.volumes:
        # Imported here: pictures need none of it.
        from dynammo.data.formats.volumes import load_volume

        return load_volume(source, form, name)
    if isinstance(source, list):
        raise DataError(f"{name} is a folder; expected a picture (image.slices 1)")
    return decode(source, name, enough, form.window)


def fitted(image: Pixels, form: Form) -> Pixels:
    """What `opened` gave, (height, size, 3)."""
    return image if form.volumes else resize(image, form.size)


def from_array(array: NDArray[Any], window: Window | None = None) -> Pixels:
    """`decode` of an array. Raises `ValueError`."""
    if window is not None and array.dtype != np.uint8:
        array = through_window(array, window)
    kind, shape = array.dtype.str[1:], array.shape
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise ValueError(f"array of shape {shape}; expected (H, W) or (H, W, 1 or 3 or 4)")
    if kind == "u2":
        array = array // 257
    elif kind[0] == "f":
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):  # NaN fails too
            raise ValueError(f"float array with values {low:g} to {high:g}; expected 0 to 1")
        array = np.rint(array.astype(np.float64) * 255)
    elif kind != "u1":
        raise ValueError(f"array of {array.dtype}; expected uint8, uint16 or floats in [0, 1]")
    pixels: Pixels = array.astype(np.uint8, order="C")
    if pixels.shape[2] == 4:
        return _on_black(pixels)
    return pixels if pixels.shape[2] == 3 else pixels.repeat(3, axis=2)


def through_window(values: NDArray[Any], window: Window) -> Pixels:
    """round(255 (v - a) / (b - a)), clipped, of values of any shape. Raises `ValueError`."""
    if values.dtype.kind not in "iuf":
        raise ValueError(f"values of {values.dtype}; expected numbers")
    low, high = window
    shown = (values.astype(np.float32) - low) / (high - low)
    if not np.isfinite(shown).all():
        raise ValueError("it has values that are no finite numbers")
    pixels: Pixels = np.rint(255 * shown.clip(0, 1)).astype(np.uint8)
    return pixels


def from_pil(image: Image.Image, enough: int | None = None, window: Window | None = None) -> Pixels:
    """`decode` of what Pillow has opened. Raises `ValueError` and what Pillow raises."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise ValueError(f"it has {frames} frames; expected a single picture")
    return frame_of(image, enough, window)


def frame_of(image: Image.Image, enough: int | None = None, window: Window | None = None) -> Pixels:
    """The frame that Pillow stands at, as `decode` shows it. Raises as `from_pil` does."""
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and pixels > limit:
        raise ValueError(f"{image.width} x {image.height} pixels exceed the limit of {limit}")
    if enough is not None:
        image.draft(None, (enough, enough))  # a JPEG; others have nothing to do here
    tags: dict[int, Any] = getattr(image, "tag_v2", {})
    upright = ImageOps.exif_transpose(image)
    mode = upright.mode
    if window is not None and mode[0] in "IF":
        return from_array(np.asarray(upright), window)
    # Pillow scales PGM with more than 8 bits to 16 bits, and calls that mode I.
    if mode.startswith("I;16") or (mode == "I" and image.format == "PPM"):
        full = 2 ** tags.get(_BITS, (16,))[0] - 1
        grey = np.asarray(upright).astype(np.int64) * 255 // full
        if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts 8 bits, not 16
            grey = 255 - grey
        return from_array(grey.astype(np.uint8))
    if mode in ("I", "F"):
        raise ValueError(f"pixels of mode {mode} have no known range; convert to 8 or 16 bits")
    if upright.has_transparency_data:
        return _on_black(np.asarray(upright.convert("RGBA")))
    return np.array(upright.convert("RGB"))


def _on_black(rgba: Pixels) -> Pixels:
    """(H, W, 4) -> (H, W, 3): colour times alpha, rounded."""
    colour, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    return ((colour * alpha + 127) // 255).astype(np.uint8)
