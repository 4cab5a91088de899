"""DICOM files of any pixels."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

STUDY = "1.2.826.0.1.3680043.8.498.2"


def encode(pixels: NDArray[Any], **elements: Any) -> bytes:
    """A DICOM file of these pixels, (H, W) or (H, W, 3), with further data elements."""
    bits = pixels.dtype.itemsize * 8
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = elements.pop("syntax", ExplicitVRLittleEndian)
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.HighBit = dataset.BitsStored - 1
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def scan(file: Path, colour: tuple[int, int, int] = (200, 10, 10), **elements: Any) -> Path:
    """A photograph of one colour, with what a modality writes into its header."""
    pixels = np.full((16, 16, 3), colour, np.uint8)
    header = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.4",
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": f"{STUDY}.1",
        "SpecificCharacterSet": "ISO_IR 100",
        "PatientID": "P-17",
        "PatientName": "Müller^Jörg",
        "StudyDate": "20260105",
        "StudyTime": "101500",
        "Modality": "XC",
        "InstanceNumber": 7,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encode(pixels, **{**header, **elements}))
    return file
