"""Reports that `dynammo predict` and `dynammo explain` write for other systems."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from pydicom import dcmread

from dynammo.data.formats.pictures import Form
from tests.flows.test_cli import dynammo, error
from tests.models import graph_folder, random_model, reseal_graph
from tests.scans import STUDY, scan


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = graph_folder(tmp_path / "model")
    reseal_graph(folder, prediction_sets={"miss": 0.1, "thresholds": [0.5, 0.5, 0.5]})
    return folder


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for number, colour in enumerate([(200, 10, 10), (10, 10, 10)]):
        unique = f"1.2.3.{number}"
        scan(tmp_path / "scans" / f"{number}.dcm", colour, SOPInstanceUID=unique)
    return tmp_path / "scans"


def predicted(document: Path) -> list[str]:
    """The coded answers in a Structured Report: of two concepts, in their order."""
    (group,) = dcmread(document).ContentSequence[-1].ContentSequence
    return [
        one.ConceptCodeSequence[0].CodeMeaning
        for one in group.ContentSequence
        if one.ConceptNameCodeSequence[0].CodingSchemeDesignator == "99DYNAMMO"
    ]


def test_both_reports_of_each_image(model: Path, scans: Path, tmp_path: Path) -> None:
    sr, fhir = tmp_path / "sr", tmp_path / "fhir"
    codes = tmp_path / "codes.csv"
    rows = [f"{name},{n},SCT,{name} lesion" for n, name in enumerate(["red", "green", "blue"])]
    codes.write_text("\n".join(["class,code,scheme,meaning", *rows]))
    asked = ("predict", "-m", model, scans, "--codes", codes, "--dicom-sr", sr, "--fhir", fhir)
    for _ in range(2):
        result = dynammo(*asked)
        assert (result.exit_code, result.stderr) == (0, "")
    documents = sorted(sr.iterdir())
    assert [file.name[:2] for file in documents] == ["0-", "1-"]
    assert predicted(documents[0]) == ["red lesion", "red lesion"]
    assert predicted(documents[1])[1:] == ["None of the known classes"]
    reports = [json.loads(file.read_text()) for file in sorted(fhir.iterdir())]
    assert [file.stem for file in sorted(fhir.iterdir())] == [file.stem for file in documents]
    assert reports[0]["conclusionCode"][0]["coding"][0] == {
        "system": "http://snomed.info/sct",
        "code": "0",
        "display": "red lesion",
    }


def test_an_image_without_a_report_is_answered(model: Path, scans: Path, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "blue").save(scans / "photo.png")
    (scans / "bad.dcm").write_bytes(b"none")
    sr, fhir, answers = (tmp_path / name for name in ("sr", "fhir", "answers.jsonl"))
    asked = ("--dicom-sr", sr, "--fhir", fhir, "-o", answers)
    result = dynammo("predict", "-m", model, scans, *asked)
    assert result.exit_code == 1
    assert "1 of 4 images have no answer; first: cannot read" in result.stderr
    assert f"1 of 4 images have no report; first: {scans / 'photo.png'}: it is no" in result.stderr
    assert [("error" in json.loads(line)) for line in answers.read_text().splitlines()] == [
        *(False, False, True, False)
    ]
    assert (len(list(sr.iterdir())), len(list(fhir.iterdir()))) == (2, 3)


def test_reports_and_a_heat_map_on_a_folder_of_slices(tmp_path: Path) -> None:
    model = random_model(tmp_path / "model", ["red", "blue"], form=Form(64, slices=4))
    folder = tmp_path / "scans" / "1.2.3.4"
    for number in range(5):
        unique = {"SOPInstanceUID": f"1.2.3.4.{number}", "InstanceNumber": number + 1}
        scan(folder / f"{number}.dcm", (50 * number, 10, 10), **unique)
    sr, fhir, maps = (tmp_path / name for name in ("sr", "fhir", "maps"))
    result = dynammo(
        *("predict", "-m", model, tmp_path / "scans", "--engine", "torch"),
        *("--dicom-sr", sr, "--fhir", fhir),
    )
    assert (result.exit_code, result.stderr) == (0, "")
    (document,), (report,) = sr.iterdir(), fhir.iterdir()
    assert document.name.startswith("1.2.3.4-") and report.stem == document.stem
    read = dcmread(document)
    (study,) = read.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    unique = [f"1.2.3.4.{number}" for number in range(5)]
    assert read.StudyInstanceUID == study.StudyInstanceUID == STUDY
    assert series.SeriesInstanceUID == f"{STUDY}.1"
    assert [own.ReferencedSOPInstanceUID for own in series.ReferencedSOPSequence] == unique
    assert predicted(document)[0] in ("red", "blue")
    (imaged,) = [
        own
        for own in json.loads(report.read_text())["contained"]
        if own["resourceType"] == "ImagingStudy"
    ]
    assert [own["uid"] for own in imaged["series"][0]["instance"]] == unique
    result = dynammo("explain", "-m", model, tmp_path / "scans", "--dicom", "-o", maps)
    assert result.exit_code == 0
    image = dcmread(maps / "1.2.3.4-heat-map.dcm")
    assert [own.ReferencedSOPInstanceUID for own in image.SourceImageSequence] == unique


def test_pictures_in_a_folder_have_no_dicom_report(tmp_path: Path) -> None:
    model = random_model(tmp_path / "model", ["red", "blue"], form=Form(64, slices=2))
    series = tmp_path / "scans" / "series"
    series.mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (16, 16), "blue").save(series / f"{number}.png")
    sr, fhir = tmp_path / "sr", tmp_path / "fhir"
    asked = ("predict", "-m", model, tmp_path / "scans", "--engine", "torch")
    told = dynammo(*asked, "--dicom-sr", sr, "--fhir", fhir)
    assert told.exit_code == 1
    assert f"1 of 1 images have no report; first: {series}: it is no DICOM file" in told.stderr
    assert len(list(fhir.iterdir())) == 1


def test_what_is_refused_before_anything_is_answered(
    model: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = tmp_path / "codes.csv"
    codes.write_text("class,code,scheme,meaning\nred,1,99X,Red\ngreen,2,99X,G\nblue,3,99X,B\n")
    predict = ("predict", "-m", model, scans)
    assert "--codes is for reports: --dicom-sr, --fhir" in error(*predict, "--codes", codes)
    told = error(*predict, "--codes", codes, "--fhir", tmp_path / "fhir")
    assert told.startswith("FHIR has no URI here for the scheme 99X")
    assert "Not a directory" in error(*predict, "--fhir", codes)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    monkeypatch.delitem(sys.modules, "dynammo.deploy.dicom_report", raising=False)
    told = error(*predict, "--dicom-sr", tmp_path / "sr")
    assert told == 'highdicom is not installed; it comes with: pip install "dynammo[dicom]"'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes.csv", "model", "scans"]


def test_heat_maps_as_dicom(model_folder: Path, scans: Path, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "blue").save(scans / "photo.png")
    maps = tmp_path / "maps"
    result = dynammo("explain", "-m", model_folder, scans, "--dicom", "-o", maps)
    assert result.exit_code == 1
    assert f"1 of 3 images have none; first: {scans / 'photo.png'}: it is no DICOM" in result.stderr
    assert sorted(file.name for file in maps.iterdir()) == [*("0-heat-map.dcm", "1-heat-map.dcm")]
    image = dcmread(maps / "1-heat-map.dcm")
    assert image.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.1"
