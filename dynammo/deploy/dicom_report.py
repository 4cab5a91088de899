"""DICOM objects that refer to a DICOM image: what a model says of it, and where it sees that.

Or to all slices of a series. Dates are the image's own, of a series its first file's, since the
same input is to give the same file under the same UIDs. When an answer was given, the prediction
log says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, time
from io import BytesIO
from typing import Any

from dynammo.data.formats.dicom import date_of
from dynammo.data.formats.pictures import Pixels
from dynammo.deploy.finding import (
    OWN,
    POSSIBLE,
    PREDICTED,
    PROBABILITY,
    Code,
    Device,
    Finding,
    dicom_uid,
    identifier,
)
from dynammo.errors import DataError
from dynammo.extras import needs

with needs("dicom", "pydicom", "highdicom"):
    import highdicom as hd
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from pydicom import Dataset
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian

# A document must have a date, an image need not.
_NO_DATE = (date(1900, 1, 1), time())
# What highdicom takes from the clock; none of it must be there.
_CLOCK = (
    *("InstanceCreationDate", "InstanceCreationTime", "ContributionDateTime"),
    *("DateOfSecondaryCapture", "TimeOfSecondaryCapture"),
)
_REPORTS, _HEAT_MAPS = 9901, 9902  # series, by number


def structured_report(headers: Sequence[Dataset], finding: Finding) -> bytes:
    """A Comprehensive SR document on an image: a Measurement Report (DICOM PS3.16, TID 1500).

    One group of measurements on the image has the predicted class and the classes that cannot be
    excluded, or that none fits, as qualitative evaluations, the probability in percent as a
    measurement, and the model as its algorithm. It is preliminary, and nobody has verified it.
    highdicom fills in the template's own codes, such as the title (126000, DCM).

    Args:
        headers: of the image, or of all slices of a series, as
            `dynammo.data.formats.dicom.read_headers` gives them.
        finding: what is said of it.

    Raises:
        DataError: a header has values that no report can take over.
    """
    header, device = headers[0], finding.device
    evaluations = [hd.sr.QualitativeEvaluation(_coded(PREDICTED), _coded(finding.label))]
    if finding.possible is not None:
        evaluations += [
            hd.sr.QualitativeEvaluation(_coded(POSSIBLE), _coded(code)) for code in finding.possible
        ]
    with _taking_over():
        sources = [hd.sr.SourceImageForMeasurementGroup.from_source_image(own) for own in headers]
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        hd.sr.TrackingIdentifier(
            uid=dicom_uid(finding.identifier("group")),
            identifier="Whole image" if len(headers) == 1 else "Whole series",
        ),
        algorithm_id=hd.sr.AlgorithmIdentification(
            name="DynaMMo",
            version=device.model,
            parameters=[
                device.software,
                *(f"{name} SHA-256 {value}" for name, value in device.parts.items()),
                f"input SHA-256 {finding.input}",
            ],
        ),
        measurements=[
            hd.sr.Measurement(_coded(PROBABILITY), float(finding.percent), codes.UCUM.Percent)
        ],
        qualitative_evaluations=evaluations,
        source_images=sources,
    )
    day, hour = date_of(header) or _NO_DATE
    with _taking_over():
        content = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(observer_device_context=_observer(device)),
            procedure_reported=_procedure(header),
            imaging_measurements=[group],
        )
        report = hd.sr.ComprehensiveSR(
            evidence=headers,
            content=content,
            series_instance_uid=_series(header, "reports", device),
            series_number=_REPORTS,
            sop_instance_uid=dicom_uid(finding.identifier("report")),
            instance_number=_number(header),
            is_complete=True,
            coding_schemes=[
                CodingSchemeIdentificationItem(OWN, name="Class names of models made with DynaMMo")
            ],
            content_date=day,
            content_time=hour,
            **_equipment(device, "predicted classes"),
        )
    return _written(report)


def heat_map_image(headers: Sequence[Dataset], drawn: Pixels, device: Device, label: str) -> bytes:
    """A Secondary Capture of a drawn heat map that refers to what it was made of.

    Args:
        headers: of the image, or of all slices of a series, as
            `dynammo.data.formats.dicom.read_headers` gives them.
        drawn: (H, W, 3) RGB.
        device: the model.
        label: the class that was looked for.

    Raises:
        DataError: a header has values that no image can take over.
    """
    header = headers[0]
    pixels = hashlib.sha256(drawn.tobytes()).hexdigest()
    unique = identifier("heat map", str(header.SOPInstanceUID), device.model, label, pixels)
    day, hour = date_of(header) or _NO_DATE
    with _taking_over():
        image = hd.sc.SCImage.from_ref_dataset(
            ref_dataset=header,
            pixel_array=drawn,
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),  # it must have one; taken out below
            series_instance_uid=_series(header, "heat maps", device),
            series_number=_HEAT_MAPS,
            sop_instance_uid=dicom_uid(unique),
            instance_number=_number(header),
            transfer_syntax_uid=ExplicitVRLittleEndian,
            content_date=day,
            content_time=hour,
            **_equipment(device, "heat maps"),
        )
    image.SourceImageSequence = [_source(own) for own in headers]
    image["PatientOrientation"].value = None  # not known here
    image.Laterality = header.get("Laterality")
    image.ConversionType = "SYN"
    image.ImageType = ["DERIVED", "SECONDARY"]
    image.DerivationDescription = f"heat map (HiResCAM) of the class {label}, by {device.software}"
    image.BurnedInAnnotation = "NO"  # nothing in it says who the patient is
    return _written(image)


@contextmanager
def _taking_over() -> Iterator[None]:
    """Around what reads a header that anybody may have written."""
    try:
        yield
    except Exception as error:  # highdicom raises nearly anything on what it does not expect
        reason = " ".join(str(error).split())
        raise DataError(f"nothing that refers to it can take over its header: {reason}") from error


def _written(made: Dataset) -> bytes:
    for part in (made, *made.get("ContributingEquipmentSequence", [])):
        for name in _CLOCK:
            if name in part:
                delattr(part, name)
    stream = BytesIO()
    with _taking_over():
        made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _source(header: Dataset) -> Dataset:
    source = Dataset()
    source.ReferencedSOPClassUID = header.SOPClassUID
    source.ReferencedSOPInstanceUID = header.SOPInstanceUID
    source.PurposeOfReferenceCodeSequence = [
        hd.sr.CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
    ]
    return source


def _coded(code: Code) -> hd.sr.CodedConcept:
    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _procedure(header: Dataset) -> hd.sr.CodedConcept:
    """As the image has it, or that there was one."""
    given = header.get("ProcedureCodeSequence")
    if given and given[0].get("CodeValue") and given[0].get("CodingSchemeDesignator"):
        return hd.sr.CodedConcept.from_dataset(given[0])
    return hd.sr.CodedConcept.from_code(codes.SCT.ImagingProcedure)


def _observer(device: Device) -> hd.sr.ObserverContext:
    return hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=dicom_uid(identifier("device", device.model)),
            name=device.software,
            model_name="DynaMMo",
            serial_number=device.model,
        ),
    )


def _equipment(device: Device, series: str) -> dict[str, Any]:
    return {
        "manufacturer": "DynaMMo",
        "manufacturer_model_name": "DynaMMo",
        "device_serial_number": device.model,
        "software_versions": device.software,
        "series_description": f"DynaMMo: {series}",
        "specific_character_set": "ISO_IR 192",
    }


def _series(header: Dataset, kind: str, device: Device) -> str:
    return dicom_uid(identifier(kind, str(header.StudyInstanceUID), device.model))


def _number(header: Dataset) -> int:
    return max(int(header.get("InstanceNumber") or 1), 1)
