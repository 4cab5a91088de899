from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fhir.resources.R4B.diagnosticreport import DiagnosticReport

from dynammo.data.formats.dicom import read_headers
from dynammo.data.formats.pictures import HashedFile
from dynammo.deploy.fhir import check_schemes, diagnostic_report
from dynammo.deploy.finding import NONE, Code, Device, Finding, own_codes
from dynammo.errors import DataError
from tests.scans import STUDY, scan

DEVICE = Device("DynaMMo 1", "a" * 64, "b" * 64, "d" * 64)
CODES = own_codes(["red", "green"])
FINDING = Finding("c" * 64, CODES["red"], "87.65", [CODES["red"]], DEVICE)


def report_on(file: Path | None, finding: Finding = FINDING) -> Any:
    """The report, read by somebody else's model of FHIR (R4B, which has these as R4 does)."""
    headers = [] if file is None else read_headers(HashedFile(file).read())
    return DiagnosticReport.model_validate_json(json.dumps(diagnostic_report(finding, headers)))


def test_a_report_says_what_the_model_says(tmp_path: Path) -> None:
    report = report_on(scan(tmp_path / "scan.dcm", IssuerOfPatientID="St. Example"))
    observation, device = report.contained
    assert report.status == observation.status == "preliminary"
    assert report.result[0].reference == f"#{observation.id}"
    assert observation.device.reference == f"#{device.id}"
    assert observation.valueCodeableConcept.coding[0].code == "red"
    assert report.conclusion == "red, 87.65 %"
    also = FINDING._replace(possible=[*CODES.values(), NONE])
    assert report_on(None, also).conclusion == (
        "red, 87.65 %; not excluded: green, None of the known classes"
    )
    probability, *possible = observation.component
    assert float(probability.valueQuantity.value) == 87.65
    assert [one.valueCodeableConcept.text for one in possible] == ["red"]
    assert {one.type.text: one.value for one in device.version} == {
        "software": "DynaMMo 1",
        "model SHA-256": "a" * 64,
        "weights SHA-256": "b" * 64,
        "training data SHA-256": "d" * 64,
    }
    image, content = observation.derivedFrom
    assert image.identifier.value == "urn:oid:1.2.826.0.1.3680043.8.498.1"
    assert content.identifier.value == "c" * 64
    assert report.imagingStudy[0].identifier.value == f"urn:oid:{STUDY}"
    for resource in (report, observation):
        assert resource.subject.identifier.value == "P-17"
        assert resource.subject.identifier.assigner.display == "St. Example"
        assert str(resource.effectiveDateTime).startswith("2026-01-05")


def test_a_report_on_a_series_names_its_instances(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        scan(tmp_path / f"series/{number}.dcm", SOPInstanceUID=f"1.2.3.{number}", Modality="CT")
    report = report_on(tmp_path / "series")
    observation, _, study = report.contained
    assert [one.reference for one in observation.derivedFrom[:1]] == [f"#{study.id}"]
    assert study.identifier[0].value == report.imagingStudy[0].identifier.value
    assert study.subject.identifier.value == "P-17"
    (series,) = study.series
    assert (series.uid, series.modality.code) == (f"{STUDY}.1", "CT")
    assert [one.uid for one in series.instance] == ["1.2.3.1", "1.2.3.2", "1.2.3.3"]
    kinds = {one.sopClass.code for one in series.instance}
    assert kinds == {"urn:oid:1.2.840.10008.5.1.4.1.1.77.1.4"}
    for number in (1, 2, 3):
        scan(tmp_path / f"nameless/{number}.dcm", SOPInstanceUID=f"1.2.3.{number}", PatientID="")
    study = report_on(tmp_path / "nameless").contained[2]
    assert study.subject.extension[0].valueCode == "unknown"


def test_nobody_and_no_date_is_invented(tmp_path: Path) -> None:
    nameless = scan(tmp_path / "scan.dcm", PatientID="", StudyDate="", StudyTime="")
    for report in (report_on(None), report_on(nameless)):
        observation, _ = report.contained
        assert report.subject is None and observation.subject is None
        assert report.effectiveDateTime is None and report.issued is None
    assert report_on(None).imagingStudy is None
    assert len(report_on(None).contained[0].derivedFrom) == 1


def test_none_of_the_classes_is_told_from_no_set() -> None:
    components = report_on(None, FINDING._replace(possible=[NONE])).contained[0].component
    assert [one.valueCodeableConcept.text for one in components[1:]] == [
        "None of the known classes"
    ]
    assert len(report_on(None, FINDING._replace(possible=None)).contained[0].component) == 1


def test_schemes_have_a_uri() -> None:
    check_schemes([*CODES.values(), Code("1", "SCT", "Red")])
    with pytest.raises(DataError, match="FHIR has no URI here for the scheme 99X; known: 99DYNA"):
        check_schemes([Code("1", "99X", "Red"), *CODES.values()])
