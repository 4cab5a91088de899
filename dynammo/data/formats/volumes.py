"""Volumes and sequences: from a file or a folder of slices to the strip that the network sees.

Read one slice at a time, so a volume costs the memory of its strip, of a slice and of the file.
What is one:

- NIfTI, `.nii` and `.nii.gz` (nibabel): axial slices, the feet first, in the radiologist's view;
- NumPy, `.npy`: (N, H, W) or (N, H, W, 3), as MedMNIST's 3-D sets have them;
- DICOM of several frames, TIFF of several pages, an animated GIF, PNG or WebP;
- a clip, `.mp4`, `.mov`, `.avi` or `.mkv` (PyAV);
- a folder of pictures, in the order of their names, or of a DICOM series, by position.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence, UnidentifiedImageError

from dynammo.data.formats.clips import decode_clip, kind_of
from dynammo.data.formats.pictures import (
    FORMATS,
    Form,
    HashedFile,
    Pixels,
    Source,
    Stack,
    Window,
    decode,
    frame_of,
    from_array,
    is_dicom,
    name_of,
    read_stack,
    resize,
    through_window,
)
from dynammo.errors import DataError
from dynammo.extras import needs

_NUMPY, _GZIP = b"\x93NUMPY", b"\x1f\x8b"
_NIFTI = slice(344, 348)  # where its mark is
_MARKS = (b"n+1\0", b"n+2\0")
_LOOKED_AT = 1_000_000  # voxels, to find what is black and what is white
_TAILS = (0.5, 99.5)  # per cent of them: a few odd voxels must not make all others grey
_UNEQUAL = 1.5  # times the usual distance of slices, or this part of it
_SAME = 1e-4  # millimetres: rounding
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}  # NIfTI; no unit is taken for millimetres


class Frames(NamedTuple):
    """How many slices there are, and the slices, (H, W, 3) each, read as they are asked for."""

    total: int
    slices: Iterator[Pixels]
    spacing: float | None = None


class Volume(NamedTuple):
    """A volume's strip, and the distance of its slices in millimetres, where it is known."""

    strip: Pixels
    spacing: float | None


def load_volume(source: Source | Stack, form: Form, name: str | None = None) -> Pixels:
    """The strip of `read_volume`, which says all else."""
    return read_volume(source, form, name).strip


def read_volume(source: Source | Stack, form: Form, name: str | None = None) -> Volume:
    """A volume as a strip: `form.slices` pictures, one below the other.

    Each slice is resized as a picture is (`resize`), then N slices become S by the share of each
    slice j in each part i of the volume's length,

        w_ij = |[j, j + 1) S/N  and  [i, i + 1)|,  sum_j w_ij = 1,

    so that parts are means of slices where N > S, and slices are repeated where N < S.

    Args:
        source: path of a file or a folder, `HashedFile`, encoded file as bytes, a folder's files,
            or array (N, H, W) or (N, H, W, 3) as `decode` takes pictures.
        form: the strip's; its window is for grey values of more than 8 bits, by default what the
            file says, or of NIfTI, floats and signed integers, which say nothing, from the 0.5th to
            the 99.5th percentile of the volume.
        name: what to call it in an error; default: the path.

    Returns:
        The strip (height, size, 3) uint8, and the distance of the slices of NIfTI and of DICOM
        series.

    Raises:
        DataError: unreadable, also for want of nibabel, PyAV or pydicom; a single picture, more
            than three axes, slices of several series or patients, at the same place twice, or at
            distances of which one is more than 1.5 times the usual one (the median), as where one
            is missing, or less than 1 / 1.5 of it; or of no distance.
    """
    name = name_of(source) if name is None else name
    try:
        frames = _frames(source, form.window, name)
        if frames.total < 2:
            raise ValueError(f"a single picture; expected a volume (image.slices {form.slices})")
        return Volume(_strip(frames, form), frames.spacing)
    except UnidentifiedImageError:
        problem = "no kind of volume that can be read"
    except DataError:
        raise
    except Exception as error:  # as with pictures, damaged bytes raise nearly anything
        problem = getattr(error, "strerror", None) or str(error) or type(error).__name__
    raise DataError(f"cannot read {name}: {problem}")


def is_slice(file: Path) -> bool:
    """Whether a file is a single picture, and so, in a folder with others, a slice of a volume.

    What cannot be read is taken for one: whoever reads it will say so.
    """
    try:
        content = file.read_bytes()
        if is_dicom(content):
            from dynammo.data.formats.dicom import count_frames

            return count_frames(content) == 1
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            return int(getattr(image, "n_frames", 1)) == 1
    except Exception:
        return True


def _strip(frames: Frames, form: Form) -> Pixels:
    parts = np.zeros((form.slices, form.size, form.size, 3), np.float32)
    length = form.slices / frames.total  # of a slice, in parts
    seen = 0
    for own in frames.slices:
        begin, end = seen * length, (seen + 1) * length
        picture = resize(own, form.size)
        for part in range(int(begin), min(int(np.ceil(end)), form.slices)):
            parts[part] += (min(end, part + 1) - max(begin, part)) * picture
        seen += 1
    if seen != frames.total:
        raise ValueError(f"it has {seen} slices and says {frames.total}")
    strip: Pixels = np.rint(parts).clip(0, 255).astype(np.uint8).reshape(form.shape)
    return strip


def _frames(source: Source | Stack, window: Window | None, name: str) -> Frames:
    if isinstance(source, np.ndarray):
        return _of_array(source, window)
    if isinstance(source, Image.Image):
        return _of_pages(source, window)
    content: bytes | Stack
    if isinstance(source, HashedFile):
        content = source.read()
    elif isinstance(source, str | Path):
        path = Path(source)
        content = read_stack(path) if path.is_dir() else path.read_bytes()
    else:
        content = source
    if isinstance(content, list):
        return _of_folder(content, window, name)
    if content[:2] == _GZIP:
        content = gzip.decompress(content)
    if content[_NIFTI] in _MARKS:
        return _of_nifti(content, window)
    if content.startswith(_NUMPY):
        return _of_array(np.load(BytesIO(content), allow_pickle=False), window)
    if is_dicom(content):
        from dynammo.data.formats.dicom import decode_frames

        count, shown = decode_frames(content, window)
        return Frames(count, (from_array(own) for own in shown))
    if (kind := kind_of(content)) is not None:
        return Frames(*decode_clip(content, kind, window))
    return _of_pages(Image.open(BytesIO(content), formats=FORMATS), window)


def _of_array(volume: NDArray[Any], window: Window | None) -> Frames:
    """(N, H, W) or (N, H, W, 3); uint8, uint16 and floats in [0, 1] as pictures have them."""
    if volume.ndim not in (3, 4) or (volume.ndim == 4 and volume.shape[3] != 3):
        raise ValueError(f"array of shape {volume.shape}; expected (N, H, W) or (N, H, W, 3)")
    kind = volume.dtype.str[1:]
    if window is None and kind not in ("u1", "u2") and volume.size:
        low, high = volume.min(), volume.max()
        if kind[0] != "f" or not (low >= 0 and high <= 1):
            window = _range_of(volume)
    return Frames(len(volume), (from_array(own, window) for own in volume))


def _of_pages(image: Image.Image, window: Window | None) -> Frames:
    pages = ImageSequence.Iterator(image)
    return Frames(getattr(image, "n_frames", 1), (frame_of(page, window=window) for page in pages))


def _of_nifti(content: bytes, window: Window | None) -> Frames:
    with needs("volumes", "nibabel"):
        from nibabel import Nifti1Image, Nifti2Image, as_closest_canonical
        from nibabel.affines import voxel_sizes

    kind = Nifti1Image if content[_NIFTI] == _MARKS[0] else Nifti2Image
    canonical: Any = as_closest_canonical  # these have no types
    sizes: Any = voxel_sizes
    image = kind.from_bytes(content)
    if not (np.isfinite(image.affine).all() and (sizes(image.affine) > 0).all()):
        raise ValueError(f"voxels of {sizes(image.affine)}; expected sizes above 0")
    image = canonical(image)
    if len(image.shape) != 3:
        raise ValueError(f"it has axes of {image.shape}; expected three")
    values = image.dataobj  # right, anterior, superior; read slice by slice
    chosen = window or _range_of(np.asanyarray(values))

    def slices() -> Iterator[Pixels]:
        for index in range(image.shape[2]):
            # The patient's right is on the left, the front above.
            own = np.asanyarray(values[..., index])[::-1, ::-1].T
            yield from_array(through_window(own, chosen))

    unit = _MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
    return Frames(image.shape[2], slices(), unit * float(sizes(image.affine)[2]))


def _range_of(values: NDArray[Any]) -> Window:
    """From where to where the values of a volume go, but for its tails."""
    step = max(1, values.size // _LOOKED_AT)
    low, high = np.percentile(values.reshape(-1)[::step].astype(np.float64), _TAILS)
    if not np.isfinite([low, high]).all():
        raise ValueError("it has values that are no finite numbers")
    return float(low), float(high) if high > low else float(low) + 1


def _of_folder(stack: Stack, window: Window | None, name: str) -> Frames:
    spacing = None
    if any(is_dicom(content) for _, content in stack):
        stack, spacing = _in_order(stack, name)
    shown = (decode(own, f"{name}/{file}", window=window) for file, own in stack)
    return Frames(len(stack), shown, spacing)


def _in_order(stack: Stack, name: str) -> tuple[Stack, float | None]:
    """A DICOM series from one end to the other, and the usual distance of its slices."""
    from dynammo.data.formats.dicom import place_of

    placed, problems = [], []
    for file, content in stack:
        try:
            if not is_dicom(content):
                raise ValueError("it is no DICOM file, and others of the folder are")
            placed.append((place_of(content), file, content))
        except Exception as error:
            problems.append(f"cannot read {name}/{file}: {error}")
    if problems:
        raise DataError(problems)
    for what in ("patient", "series"):
        kinds = {getattr(place, what): file for place, file, _ in placed}
        if len(kinds) > 1:
            first, other = [*kinds.values()][:2]
            raise DataError(
                f"{name} holds slices of {len(kinds)} {what if what == 'series' else what + 's'}: "
                f"{first} and {other}"
            )
    measured = all(place.measured for place, _, _ in placed)
    if not measured and any(place.measured for place, _, _ in placed):
        bare = next(file for place, file, _ in placed if not place.measured)
        raise DataError(f"{name}/{bare} has no ImagePositionPatient, and other slices have one")
    placed.sort(key=lambda one: one[0].position)
    steps = np.diff([place.position for place, _, _ in placed])
    between = [f"{one} and {other}" for (_, one, _), (_, other, _) in pairwise(placed)]
    if twice := [pair for pair, step in zip(between, steps, strict=True) if step < _SAME]:
        raise DataError(f"{name}: {twice[0]} are at the same place")
    usual, unit = float(np.median(steps)) if len(steps) else 0.0, " mm" * measured
    for pair, step in zip(between, steps, strict=True):
        if not usual / _UNEQUAL <= step <= _UNEQUAL * usual:
            what = "are missing between" if step > usual else "are unequally spaced:"
            raise DataError(
                f"{name}: slices {what} {pair}, {step:g}{unit} apart where others are "
                f"{usual:g}{unit}"
            )
    return [(file, content) for _, file, content in placed], usual if measured and usual else None
