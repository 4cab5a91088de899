"""What a model says of an image as a FHIR R4 DiagnosticReport, with all it needs inside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dynammo.deploy.finding import (
    OWN,
    POSSIBLE,
    PREDICTED,
    PROBABILITY,
    SPACE,
    Code,
    Device,
    Finding,
    identifier,
)
from dynammo.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

_REPORT = Code("image-classification", OWN, "Classification of an image")
_SYSTEMS = {  # designator of a scheme in DICOM -> URI in FHIR (DICOM PS3.16, table 8-1)
    OWN: f"urn:uuid:{SPACE}",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "SCT": "http://snomed.info/sct",
    "LN": "http://loinc.org",
    "RADLEX": "http://radlex.org",
    "I10": "http://hl7.org/fhir/sid/icd-10",
    "I10C": "http://hl7.org/fhir/sid/icd-10-cm",
}
_UCUM, _UIDS, _URIS = "http://unitsofmeasure.org", "urn:dicom:uid", "urn:ietf:rfc:3986"
_ABSENT = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"
_UNKNOWN = {"extension": [{"url": _ABSENT, "valueCode": "unknown"}]}
_SHA256 = "urn:oid:2.16.840.1.101.3.4.2.1"  # the name of the algorithm (RFC 5758)


def check_schemes(codes: Iterable[Code]) -> None:
    """Refuse codes that FHIR could not name.

    Raises:
        DataError: no URI is known for a scheme.
    """
    if unknown := sorted({code.scheme for code in codes} - _SYSTEMS.keys()):
        known = ", ".join(_SYSTEMS)
        raise DataError(f"FHIR has no URI here for the scheme {', '.join(unknown)}; known: {known}")


def diagnostic_report(finding: Finding, headers: Sequence[Dataset] = ()) -> dict[str, Any]:
    """A report with one Observation and the Device that made it, both contained; of a series also
    an ImagingStudy, with the instances that were looked at.

    The value is the predicted class; components are its probability in percent and each class that
    cannot be excluded, or that none fits. Nobody is named who is not in the image's header, and
    there is no date but the image's.

    Args:
        finding: what is said of the image; its codes are of schemes that `check_schemes` passes.
        headers: of a DICOM image, or of all slices of a series, as
            `dynammo.data.formats.dicom.read_headers` gives them.
    """
    header = headers[0] if headers else None
    unique = str(finding.identifier("FHIR"))
    patient = {} if header is None else _subject(header)
    when = {} if header is None else _time(header)
    components: list[dict[str, Any]] = [
        {
            "code": _concept(PROBABILITY),
            "valueQuantity": {
                "value": float(finding.percent),
                "unit": "%",
                "system": _UCUM,
                "code": "%",
            },
        }
    ]
    if finding.possible is not None:
        components += [
            {"code": _concept(POSSIBLE), "valueCodeableConcept": _concept(code)}
            for code in finding.possible
        ]
    observation = {
        "resourceType": "Observation",
        "id": "answer",
        "status": "preliminary",
        "code": _concept(PREDICTED),
        **patient,
        **when,
        "valueCodeableConcept": _concept(finding.label),
        "device": {"reference": "#model"},
        "derivedFrom": _sources(finding, headers),
        "component": components,
    }
    study, series = {}, [_series(headers)] if len(headers) > 1 else []
    if header is not None:
        study = {"imagingStudy": [_logical("ImagingStudy", _UIDS, f"{header.StudyInstanceUID}")]}
    return {
        "resourceType": "DiagnosticReport",
        "id": unique,
        "contained": [observation, _device(finding.device), *series],
        "identifier": [{"system": _URIS, "value": f"urn:uuid:{unique}"}],
        "status": "preliminary",
        "code": _concept(_REPORT),
        **patient,
        **when,
        "result": [{"reference": "#answer"}],
        **study,
        "conclusion": _conclusion(finding),
        "conclusionCode": [_concept(finding.label)],
    }


def _conclusion(finding: Finding) -> str:
    """For who reads the text alone: the answer, and what else it may be."""
    others = [code.meaning for code in finding.possible or [] if code != finding.label]
    more = f"; not excluded: {', '.join(others)}" if others else ""
    return f"{finding.label.meaning}, {finding.percent} %{more}"


def _device(device: Device) -> dict[str, Any]:
    unique = identifier("device", device.model)
    hashes = {"model": device.model, **device.parts}
    return {
        "resourceType": "Device",
        "id": "model",
        "identifier": [{"system": _URIS, "value": f"urn:uuid:{unique}"}],
        "manufacturer": "DynaMMo",
        "deviceName": [{"name": "DynaMMo", "type": "model-name"}],
        "version": [
            {"type": {"text": "software"}, "value": device.software},
            *(
                {"type": {"text": f"{name} SHA-256"}, "value": value}
                for name, value in hashes.items()
            ),
        ],
    }


def _sources(finding: Finding, headers: Sequence[Dataset]) -> list[dict[str, Any]]:
    """The file by its hash, a DICOM image by its UID, too, and a series as what is contained."""
    file = _logical("DocumentReference", _SHA256, finding.input)
    if not headers:
        return [file]
    if len(headers) > 1:
        return [{"reference": "#images"}, file]
    return [_logical("Media", _UIDS, f"{headers[0].SOPInstanceUID}"), file]


def _series(headers: Sequence[Dataset]) -> dict[str, Any]:
    """The study as far as it was looked at."""
    first = headers[0]
    instances = [
        {
            "uid": f"{own.SOPInstanceUID}",
            "sopClass": {"system": _URIS, "code": f"urn:oid:{own.SOPClassUID}"},
        }
        for own in headers
    ]
    return {
        "resourceType": "ImagingStudy",
        "id": "images",
        "identifier": [{"system": _UIDS, "value": f"urn:oid:{first.StudyInstanceUID}"}],
        "status": "unknown",  # whether the archive has it
        "subject": _UNKNOWN,  # FHIR wants one
        **_subject(first),
        "series": [
            {
                "uid": f"{first.SeriesInstanceUID}",
                "modality": {"system": _SYSTEMS["DCM"], "code": f"{first.Modality}"},
                "numberOfInstances": len(instances),
                "instance": instances,
            }
        ],
    }


def _subject(header: Dataset) -> dict[str, Any]:
    number = str(header.get("PatientID") or "").strip()
    if not number:
        return {}
    issuer = str(header.get("IssuerOfPatientID") or "").strip()
    assigner = {"assigner": {"display": issuer}} if issuer else {}
    return {"subject": {"type": "Patient", "identifier": {"value": number, **assigner}}}


def _time(header: Dataset) -> dict[str, Any]:
    from dynammo.data.formats.dicom import date_of  # where there is a header, there is pydicom

    found = date_of(header)
    return {} if found is None else {"effectiveDateTime": found[0].strftime("%Y-%m-%d")}


def _logical(kind: str, system: str, value: str) -> dict[str, Any]:
    """A reference to something that another system knows by this identifier."""
    if system == _UIDS:
        value = f"urn:oid:{value}"
    return {"type": kind, "identifier": {"system": system, "value": value}}


def _concept(code: Code) -> dict[str, Any]:
    coding = {"system": _SYSTEMS[code.scheme], "code": code.value, "display": code.meaning}
    return {"coding": [coding], "text": code.meaning}
