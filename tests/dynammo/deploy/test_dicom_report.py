from __future__ import annotations

import time
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.sr.codedict import codes as standard

from dynammo.data.formats.dicom import date_of, read_header, read_headers
from dynammo.data.formats.pictures import HashedFile, decode
from dynammo.deploy.dicom_report import heat_map_image, structured_report
from dynammo.deploy.finding import NONE, Code, Device, Finding, own_codes
from dynammo.errors import DataError
from tests.scans import STUDY, scan

DEVICE = Device("DynaMMo 1", "a" * 64, "b" * 64, "d" * 64)
CODES = own_codes(["red", "green"])
FINDING = Finding("c" * 64, CODES["red"], "87.65", list(CODES.values()), DEVICE)


def header_of(tmp_path: Path, **elements: Any) -> Dataset:
    header = read_header(scan(tmp_path / "scan.dcm", **elements).read_bytes())
    assert header is not None
    return header


def group_of(report: bytes) -> Any:
    """The one group of measurements, as other programs read it."""
    document = hd.sr.ComprehensiveSR.from_dataset(dcmread(BytesIO(report)))
    (group,) = document.content.get_image_measurement_groups()
    return group


def evaluations(group: Any) -> list[tuple[str, str]]:
    return [
        (one.name.meaning, one.value.meaning)
        for one in group.get_qualitative_evaluations()
        if one.name.scheme_designator == "99DYNAMMO"
    ]


def test_a_report_says_what_the_model_says(tmp_path: Path) -> None:
    header = header_of(tmp_path)
    report = structured_report([header], FINDING)
    document = dcmread(BytesIO(report))
    assert document.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.33"  # Comprehensive SR
    assert document.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert (document.PatientID, str(document.PatientName)) == ("P-17", "Müller^Jörg")
    assert (document.StudyInstanceUID, document.Modality) == (STUDY, "SR")
    assert (document.CompletionFlag, document.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert document.PreliminaryFlag == "PRELIMINARY"
    (study,) = document.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    assert [one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence] == [
        header.SOPInstanceUID
    ]
    group = group_of(report)
    assert evaluations(group) == [
        ("Predicted class", "red"),
        ("Class that cannot be excluded", "red"),
        ("Class that cannot be excluded", "green"),
    ]
    (probability,) = group.get_measurements()
    assert probability.name.meaning == "Probability"
    assert (probability.value, probability.unit) == (87.65, standard.UCUM.Percent)
    (source,) = group.source_images
    assert source.referenced_sop_instance_uid == header.SOPInstanceUID
    text = [
        (one.ConceptNameCodeSequence[0].CodeMeaning, one.TextValue)
        for one in group[0].ContentSequence
        if one.ValueType == "TEXT"
    ]
    assert ("Algorithm Version", "a" * 64) in text
    parameters = {value for name, value in text if name == "Algorithm Parameters"}
    assert parameters == {
        "DynaMMo 1",
        f"weights SHA-256 {'b' * 64}",
        f"training data SHA-256 {'d' * 64}",
        f"input SHA-256 {'c' * 64}",
    }


def test_codes_are_those_of_the_standard(tmp_path: Path) -> None:
    """All of the report's in the schemes DCM and UCUM, against pydicom's dictionary of PS3.16."""
    meanings = {
        (code.scheme_designator, code.value): code.meaning
        for code in (getattr(standard.DCM, name) for name in standard.DCM.dir())
    }
    meanings["UCUM", standard.UCUM.Percent.value] = standard.UCUM.Percent.meaning
    found = {}
    document = dcmread(BytesIO(structured_report([header_of(tmp_path)], FINDING)))
    for element in document.iterall():
        if element.keyword == "CodeValue":
            code = element.value
        elif element.keyword == "CodingSchemeDesignator":
            scheme = element.value
        elif element.keyword == "CodeMeaning" and scheme in ("DCM", "UCUM"):
            found[scheme, code] = element.value
    assert found == {key: meanings[key] for key in found}
    assert found["DCM", "126000"] == "Imaging Measurement Report"  # the title, of TID 1500
    assert {"122157", "126010", "125007", "121058"} <= {code for _, code in found}


def test_none_of_the_classes_is_told_from_no_set(tmp_path: Path) -> None:
    header = header_of(tmp_path)
    none = evaluations(group_of(structured_report([header], FINDING._replace(possible=[NONE]))))
    assert none[1:] == [("Class that cannot be excluded", "None of the known classes")]
    no_set = evaluations(group_of(structured_report([header], FINDING._replace(possible=None))))
    assert no_set == [("Predicted class", "red")]


def test_codes_are_those_that_were_given(tmp_path: Path) -> None:
    melanoma = Code("372244006", "SCT", "Malignant melanoma")
    report = structured_report(
        [header_of(tmp_path)], FINDING._replace(label=melanoma, possible=None)
    )
    values = [one.value for one in group_of(report).get_qualitative_evaluations()]
    assert ("372244006", "SCT") in [(one.value, one.scheme_designator) for one in values]


def test_the_same_input_gives_the_same_file(tmp_path: Path) -> None:
    drawn = np.zeros((8, 12, 3), np.uint8)

    def made() -> list[bytes]:
        header = header_of(tmp_path)
        return [
            structured_report([header], FINDING),
            heat_map_image([header], drawn, DEVICE, "red"),
        ]

    first = made()
    time.sleep(0.002)  # DICOM's clock has microseconds
    assert made() == first
    other = structured_report([header_of(tmp_path)], FINDING._replace(percent="1.00"))
    unique = [dcmread(BytesIO(one)).SOPInstanceUID for one in (*first, other)]
    assert len(set(unique)) == 3


def series_of(tmp_path: Path) -> list[Dataset]:
    for number in (1, 2, 3):
        unique = {"SOPInstanceUID": f"1.2.3.{number}", "InstanceNumber": number}
        scan(tmp_path / f"series/{number}.dcm", **unique)
    return read_headers(HashedFile(tmp_path / "series").read())


def test_a_report_on_a_series_refers_to_its_study_its_series_and_its_slices(
    tmp_path: Path,
) -> None:
    report = structured_report(series_of(tmp_path), FINDING)
    document = dcmread(BytesIO(report))
    (study,) = document.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == document.StudyInstanceUID == STUDY
    (series,) = study.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == f"{STUDY}.1"
    unique = ["1.2.3.1", "1.2.3.2", "1.2.3.3"]
    assert [one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence] == unique
    group = group_of(report)
    assert [one.referenced_sop_instance_uid for one in group.source_images] == unique
    assert group.tracking_identifier == "Whole series"
    assert evaluations(group)[0] == ("Predicted class", "red")


def test_a_heat_map_of_a_series_names_its_slices(tmp_path: Path) -> None:
    headers = series_of(tmp_path)
    drawn = np.zeros((8, 8, 3), np.uint8)
    image = dcmread(BytesIO(heat_map_image(headers, drawn, DEVICE, "red")))
    assert [one.ReferencedSOPInstanceUID for one in image.SourceImageSequence] == [
        *("1.2.3.1", "1.2.3.2", "1.2.3.3")
    ]
    assert image.StudyInstanceUID == STUDY


def test_a_slice_that_nothing_can_refer_to(tmp_path: Path) -> None:
    series_of(tmp_path)
    scan(tmp_path / "series/2.dcm", StudyInstanceUID="")
    with pytest.raises(DataError, match=r"2\.dcm: it has no StudyInstanceUID"):
        read_headers(HashedFile(tmp_path / "series").read())


def test_a_heat_map_refers_to_its_image(tmp_path: Path) -> None:
    header = header_of(tmp_path)
    drawn = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    content = heat_map_image([header], drawn, DEVICE, "red")
    image = dcmread(BytesIO(content))
    assert image.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture
    (source,) = image.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == header.SOPInstanceUID
    assert (image.StudyInstanceUID, image.InstanceNumber) == (STUDY, 7)
    assert image.SeriesInstanceUID != header.SeriesInstanceUID
    assert "class red, by DynaMMo 1" in image.DerivationDescription
    assert (decode(content) == drawn).all()


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({}, ("20260105", "101500")),
        ({"ContentDate": "20260203", "ContentTime": "1130"}, ("20260203", "1130")),
        ({"AcquisitionDate": "20260203"}, ("20260203", "000000")),
        ({"StudyDate": "", "StudyTime": ""}, ("19000101", "000000")),
    ],
)
def test_dates_are_those_of_the_image(
    elements: dict[str, str], expected: tuple[str, str], tmp_path: Path
) -> None:
    report = dcmread(BytesIO(structured_report([header_of(tmp_path, **elements)], FINDING)))
    assert report.ContentDate == expected[0]
    assert str(report.ContentTime).ljust(6, "0") == expected[1].ljust(6, "0")


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "examples_rgb_color.dcm"])
def test_headers_of_real_devices(name: str) -> None:
    file = get_testdata_file(name, download=False)
    header = read_header(Path(str(file)).read_bytes())
    assert header is not None
    (source,) = group_of(structured_report([header], FINDING)).source_images
    assert source.referenced_sop_instance_uid == header.SOPInstanceUID


def test_what_is_no_image_of_a_patient() -> None:
    file = get_testdata_file("rtdose_1frame.dcm", download=False)
    header = read_header(Path(str(file)).read_bytes())
    assert header is not None
    with pytest.raises(DataError, match="Modality 'RTDOSE' are not valid"):
        structured_report([header], FINDING)


def test_what_nothing_can_refer_to(tmp_path: Path) -> None:
    assert read_header(b"\x89PNG no DICOM") is None
    with pytest.raises(DataError, match="it has no StudyInstanceUID, SeriesInstanceUID, so that"):
        header_of(tmp_path, StudyInstanceUID="", SeriesInstanceUID="")
    with pytest.raises(DataError, match="can take over its header: 'X' is not a valid"):
        structured_report([header_of(tmp_path, PatientSex="X")], FINDING)


def test_a_date_that_is_none(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Invalid value for VR DA"):
        header = header_of(tmp_path, StudyDate="in May")
    with pytest.raises(DataError, match="its StudyDate and StudyTime cannot be read"):
        date_of(header)
