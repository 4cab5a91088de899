"""The picture in a DICOM file, and what its header says, read with pydicom.

Apart from the source `dicom`, for pictures are decoded wherever images are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, time
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynammo.data.formats.pictures import Stack, Window, is_dicom
from dynammo.errors import DataError
from dynammo.extras import needs

with needs("dicom", "pydicom"):
    from pydicom import Dataset, dcmread
    from pydicom.multival import MultiValue
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi
    from pydicom.pixels.utils import iter_pixels, pixel_array
    from pydicom.valuerep import DA, TM

Shown = NDArray[np.uint8]

_MOMENT: tuple[tuple[Any, str], ...] = ((DA, "Date"), (TM, "Time"))
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
# What another object needs to refer to an image, and what it takes over, empty if need be (type 2).
_REFERRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality")
_TAKEN_OVER = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
_KINDS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", *_COLOUR)


def decode_dicom(content: bytes, window: Window | None = None) -> Shown:
    """The picture of a DICOM file as it would be shown, (H, W) or (H, W, 3) uint8.

    Grey: the modality LUT, or v -> slope v + intercept; then the VOI LUT, or the first window; then
    round(255 x); x -> 1 - x for MONOCHROME1, whose smallest value is white. Without LUT and
    window the full range of the stored bits is shown. Palettes and YBR become RGB; more than 8 bits
    of colour are scaled by their full range. Source: DICOM PS3.3, C.7.6.3, C.11.1, C.11.2.

    Args:
        content: of the file.
        window: (black, white) in the units of the modality, in place of the file's own.

    Raises:
        ValueError: several frames, no pixels, a kind of picture that is not known, a compression
            that cannot be read, a window of no width, a rescaling or window that gives no finite
            numbers, too many pixels.
    """
    dataset = dcmread(BytesIO(content))
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(f"it has {frames} frames; expected a single picture")
    _check_pixels(dataset)
    with _readable(dataset):
        values = pixel_array(dataset)
    return _as_shown(values, dataset, window)


def decode_frames(content: bytes, window: Window | None = None) -> tuple[int, Iterator[Shown]]:
    """How many frames a DICOM file has, and each as `decode_dicom` would show it.

    What an enhanced file says of a frame (rescaling, window) is looked for in its functional groups
    (PS3.3, C.7.6.16).

    Raises:
        ValueError: see `decode_dicom`; also while the frames are read.
    """
    dataset = dcmread(BytesIO(content))
    _check_pixels(dataset)

    def frames() -> Iterator[Shown]:
        with _readable(dataset):
            for index, values in enumerate(iter_pixels(dataset)):
                yield _as_shown(values, _of_frame(dataset, index), window)

    return int(dataset.get("NumberOfFrames") or 1), frames()


def count_frames(content: bytes) -> int:
    """How many frames a DICOM file says it has."""
    header = dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=["NumberOfFrames"])
    return int(header.get("NumberOfFrames") or 1)


class Place(NamedTuple):
    """Which series a slice is of, of whom, and where in it it lies: millimetres along the normal of
    the slices, or, where the file does not say, its number.
    """

    series: str
    patient: str
    position: float
    measured: bool


def place_of(content: bytes) -> Place:
    """Raises `ValueError`: the file says neither position nor number."""
    header = dcmread(BytesIO(content), stop_before_pixels=True)
    series, patient = str(header.get("SeriesInstanceUID") or ""), str(header.get("PatientID") or "")
    position, axes = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
    if position and axes:
        normal = np.cross(np.asarray(axes[:3], float), np.asarray(axes[3:], float))
        return Place(series, patient, float(normal @ np.asarray(position, float)), True)
    number = header.get("InstanceNumber")
    if number is None:
        raise ValueError("it has neither ImagePositionPatient nor InstanceNumber")
    return Place(series, patient, float(number), False)


def _check_pixels(dataset: Dataset) -> None:
    if "PixelData" not in dataset:
        raise ValueError("it holds no pixels (PixelData)")
    kind = str(dataset.get("PhotometricInterpretation"))
    if kind not in _KINDS:
        raise ValueError(f"PhotometricInterpretation {kind}; expected one of {', '.join(_KINDS)}")
    count, limit = int(dataset.Rows) * int(dataset.Columns), Image.MAX_IMAGE_PIXELS
    if limit is not None and count > limit:
        raise ValueError(f"{dataset.Columns} x {dataset.Rows} pixels exceed the limit of {limit}")


@contextmanager
def _readable(dataset: Dataset) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        syntax = dataset.file_meta.TransferSyntaxUID.name
        reason = " ".join(str(error).split())
        raise ValueError(f"its compression, {syntax}, cannot be read: {reason}") from None


def _as_shown(values: NDArray[Any], dataset: Dataset, window: Window | None) -> Shown:
    """One frame's stored values, (H, W) or (H, W, 3), as they would be shown."""
    kind = str(dataset.get("PhotometricInterpretation"))
    if kind == "PALETTE COLOR":
        colours = apply_color_lut(values, dataset)
        eight = np.asarray(colours >> 8 if colours.dtype == np.uint16 else colours, np.uint8)
        return eight[..., :3]  # a palette may have an alpha channel
    if kind in _COLOUR:
        full = 2 ** int(dataset.BitsStored) - 1
        return np.asarray(values.astype(np.int64) * 255 // full, np.uint8)
    shown = _shown(values, dataset, window)
    if kind == "MONOCHROME1":
        shown = 1 - shown
    return np.rint(255 * shown).astype(np.uint8)


def _of_frame(dataset: Dataset, index: int) -> Dataset:
    """The file with what its functional groups say of one frame's values, without its pixels."""
    groups = [*(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]]
    groups += [*(dataset.get("PerFrameFunctionalGroupsSequence") or [])[index : index + 1]]
    found = Dataset()
    for element in dataset.group_dataset(0x0028):
        if element.keyword:
            found.add(element)
    for group in groups:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for own in group.get(name) or []:
                found.update(own)
    return found


def read_header(content: bytes) -> Dataset | None:
    """A DICOM file without its pixels, its texts decoded; None if it is no DICOM file.

    Raises:
        DataError: it cannot be read, or lacks what other objects must refer to.
    """
    if not is_dicom(content):
        return None
    try:
        header = dcmread(BytesIO(content), stop_before_pixels=True)
        header.decode()
        missing = [name for name in _REFERRED if not header.get(name)]
    except Exception as error:  # as with pixels, damaged bytes raise nearly anything
        reason = " ".join(str(error).split())
        raise DataError(f"its header cannot be read: {reason}") from None
    if missing:
        raise DataError(f"it has no {', '.join(missing)}, so that no report can refer to it")
    for name in _TAKEN_OVER:
        if name not in header:
            setattr(header, name, None)
    return header


def read_headers(content: bytes | Stack) -> list[Dataset]:
    """`read_header` of a file, or of each file of a series; empty if they are no DICOM files.

    Raises:
        DataError: see `read_header`; of a series it names the file.
    """
    if isinstance(content, bytes):
        header = read_header(content)
        return [] if header is None else [header]
    headers = []
    for name, own in content:
        try:
            header = read_header(own)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        if header is not None:
            headers.append(header)
    return headers


def date_of(header: Dataset) -> tuple[date, time] | None:
    """An image's date and time: its own, else its series', else its study's.

    Raises:
        DataError: they are none.
    """
    for name in ("Content", "Acquisition", "Series", "Study"):
        try:
            day, hour = (kind(header.get(f"{name}{part}")) for kind, part in _MOMENT)
        except ValueError as error:
            raise DataError(f"its {name}Date and {name}Time cannot be read: {error}") from None
        if day is not None:
            return day, hour or time()
    return None


def _shown(stored: NDArray[Any], dataset: Dataset, chosen: Window | None) -> NDArray[np.float64]:
    """Stored values (H, W) -> brightness in [0, 1], before the inversion of MONOCHROME1."""
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at
        values = np.asarray(apply_modality_lut(stored, dataset), np.float64)
    _refuse_unless_finite(values, "RescaleSlope and RescaleIntercept")
    if chosen is not None:
        return _between(values, *chosen)
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        looked_up = apply_voi(np.rint(values).astype(np.int64), dataset)
        return np.asarray(looked_up / (2.0**bits - 1), np.float64)
    centre, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is not None and width is not None:
        _refuse_unless_finite(np.array([centre, width]), "WindowCenter and WindowWidth")
        return window(values, centre, width, str(dataset.get("VOILUTFunction") or "LINEAR"))
    if sequence := dataset.get("ModalityLUTSequence"):
        low, high = 0.0, 2.0 ** int(sequence[0].LUTDescriptor[2]) - 1
    else:
        bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
        ends = np.array(
            [-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1] if signed else [0, 2**bits - 1]
        )
        if "RescaleSlope" in dataset and "RescaleIntercept" in dataset:
            with np.errstate(over="ignore"):
                ends = float(dataset.RescaleSlope) * ends + float(dataset.RescaleIntercept)
        low, high = float(ends.min()), float(ends.max())
        _refuse_unless_finite(np.array(high - low), "RescaleSlope and RescaleIntercept")
        if low == high:
            raise ValueError("RescaleSlope 0; expected another number")
    return _between(values, low, high)


def _between(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    return np.asarray(np.clip((values - low) / (high - low), 0, 1), np.float64)


def window(
    values: NDArray[np.float64], centre: float, width: float, function: str = "LINEAR"
) -> NDArray[np.float64]:
    """Values seen through a window, in [0, 1] (DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3).

    LINEAR: ((v - (c - 0.5)) / (w - 1) + 0.5), clipped to [0, 1]; for w = 1 a step above c - 0.5.
    LINEAR_EXACT: ((v - c) / w + 0.5), clipped. SIGMOID: 1 / (1 + exp(-4 (v - c) / w)).

    Args:
        values: of any shape, in units of the modality.
        centre: c.
        width: w, at least 1 for LINEAR, above 0 else.
        function: one of the three.

    Raises:
        ValueError: a width too small, or an unknown function.
    """
    if width <= 0 or (function == "LINEAR" and width < 1):
        raise ValueError(f"WindowWidth {width:g}; expected at least 1, or above 0 unless LINEAR")
    if function == "LINEAR":
        if width == 1:
            return (values > centre - 0.5).astype(np.float64)
        return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if function == "SIGMOID":
        # The exponent is bounded so that far values do not overflow.
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    raise ValueError(f"VOILUTFunction {function}; expected LINEAR, LINEAR_EXACT or SIGMOID")


def _refuse_unless_finite(values: NDArray[np.float64], names: str) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"{names} give values that are not finite numbers")


def _first(value: Any) -> float | None:
    """A window may be one of several alternatives; the first is the default."""
    if isinstance(value, MultiValue | list | tuple):
        value = value[0] if len(value) else None
    return None if value is None or value == "" else float(value)
