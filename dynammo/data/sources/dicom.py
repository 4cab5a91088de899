"""DICOM: images of radiology and others as the modalities write them, read with pydicom.

Files are decoded where all images are (`dynammo.data.formats.pictures.decode`, with
`dynammo.data.formats.dicom`), so that training and serving see the same; the sources `folder` and
`csv` read them, too. This source adds the patients.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dynammo.data.formats.pictures import slice_files
from dynammo.data.samples import ImageSet, Sample
from dynammo.data.sources import csv_manifest, folder
from dynammo.data.sources.about import About
from dynammo.errors import DataError
from dynammo.extras import needs

ABOUT = About(
    title="your own DICOM files, patients kept apart",
    source="your own",
    licence="yours",
    size="any",
    classes="any",
    citation="NEMA PS3 / ISO 12052, Digital Imaging and Communications in Medicine",
    protocol="none",
    layout="a folder with train/<class>/*.dcm and test/<class>/*.dcm, or a CSV as for csv",
    options="patients: true (default) groups files by PatientID; false where all have the same",
)


def load(
    path: Path, patients: bool = True, volumes: bool = False, columns: Sequence[str] = ()
) -> ImageSet:
    """List DICOM files laid out as for the sources `folder` or `csv`.

    With `patients` a file's group is its PatientID, so that a patient in train and in test is
    refused. It is not kept as it is: the group is the start of its SHA-256, which tells patients
    apart in manifests and messages without naming them (but is no protection against somebody who
    can guess the ids). A group that the CSV gives wins. Files without a PatientID have no group.

    Args:
        path: the folder, or the CSV, or a folder that holds `manifest.csv`.
        patients: whether to read PatientID; turn off where anonymisation gave all files the same.
        volumes: images are volumes: files of several frames, or folders of slices.
        columns: further ones of the CSV to keep of each image.

    Raises:
        DataError: see `folder.load` and `csv_manifest.load`; files that are not DICOM. All at once.
            Or columns, and no CSV.
        MissingExtra: pydicom is not installed.
    """
    with needs("dicom", "pydicom"):  # here, for `dynammo datasets` shows this source without it
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
    is_csv = not path.is_dir() or (path / "manifest.csv").exists()
    if columns and not is_csv:
        raise DataError(f"{path} has no columns ({', '.join(columns)}): expected a CSV (clinical)")
    image_set = csv_manifest.load(path, columns) if is_csv else folder.load(path, volumes)
    problems: list[str] = []
    samples: list[Sample] = []
    for sample in image_set.samples:
        try:
            file = image_set.root / sample.file
            if file.is_dir():  # that its slices are of one patient is seen when they are decoded
                file = min(slice_files(file))
            header = dcmread(file, stop_before_pixels=True, specific_tags=["PatientID"])
        except (InvalidDicomError, OSError, ValueError, EOFError):
            problems.append(f"{sample.file} is no DICOM file")
            continue
        patient = str(header.get("PatientID") or "").strip()
        if patients and patient and sample.group is None:
            digest = hashlib.sha256(patient.encode()).hexdigest()[:16]
            sample = replace(sample, group=f"patient {digest}")
        samples.append(sample)
    if problems:
        raise DataError(problems)
    return ImageSet(image_set.root, tuple(samples))
