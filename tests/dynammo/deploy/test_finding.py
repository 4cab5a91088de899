from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from dynammo.deploy.answers import Answer
from dynammo.deploy.finding import (
    NONE,
    OWN,
    Code,
    Device,
    dicom_uid,
    find,
    identifier,
    own_codes,
    read_codes,
    read_device,
)
from dynammo.deploy.graph import load_predictor
from dynammo.errors import CheckpointError, DataError
from tests.models import graph_folder

DEVICE = Device("DynaMMo 1", "a" * 64, "b" * 64, "")
ANSWER = Answer("red", 0.876543, {"red": 0.876543, "blue": 0.123457}, ["red"])
HEADER = "class,code,scheme,meaning\n"


def test_classes_have_codes_of_their_own() -> None:
    assert own_codes(["red", "blue"])["red"] == Code("red", OWN, "red")
    with pytest.raises(DataError, match=r"class 'l{65}' has more than 64 characters"):
        own_codes(["red", "l" * 65])


def test_codes_come_from_a_table(tmp_path: Path) -> None:
    file = tmp_path / "codes.csv"
    file.write_text(f"{HEADER}red,386713009,SCT,Red\nblue, 405738005, SCT, Blue\nold,1,99X,Old\n")
    codes = read_codes(file, ["blue", "red"])
    assert codes == {
        "blue": Code("405738005", "SCT", "Blue"),
        "red": Code("386713009", "SCT", "Red"),
    }
    assert list(codes) == ["blue", "red"]


def test_all_mistakes_in_codes_come_at_once(tmp_path: Path) -> None:
    file = tmp_path / "codes.csv"
    rows = [f"red,1,SCT,{'l' * 65}", "red,1,SCT,Red", "blue,2,SCT", f"pink,3,{'S' * 17},Pink"]
    file.write_text(HEADER + "\n".join(rows) + "\n")
    with pytest.raises(DataError) as caught:
        read_codes(file, ["red", "green"])
    assert caught.value.problems == [
        f"{file}: row 2: a meaning has at most 64 characters",
        f"{file}: row 3: red is there twice",
        f"{file}: row 4: expected 4 values",
        f"{file}: row 5: a scheme has at most 16 characters, such as SCT",
        f"{file}: no code for the class green",
    ]
    file.write_text("class,code\nred,1\n")
    with pytest.raises(DataError, match=r"its columns are class, code; expected class,code,"):
        read_codes(file, ["red"])
    with pytest.raises(DataError, match=r"cannot read .*none.csv: No such file"):
        read_codes(tmp_path / "none.csv", ["red"])


def test_the_same_finding_has_the_same_identifiers() -> None:
    codes = own_codes(["red", "blue"])
    finding = find(ANSWER, "c" * 64, codes, DEVICE)
    assert (finding.percent, finding.possible) == ("87.65", [codes["red"]])
    for answer in (ANSWER._replace(prediction_set=[]), ANSWER._replace(unknown=True)):
        assert (find(answer, "c" * 64, codes, DEVICE).possible or [])[-1] == NONE
    again = find(ANSWER._replace(probability=0.8765431), "c" * 64, codes, DEVICE)
    assert finding.identifier("report") == again.identifier("report")
    others = [
        finding,
        finding._replace(input="d" * 64),
        finding._replace(possible=None),
        finding._replace(possible=[]),
        finding._replace(device=DEVICE._replace(model="e" * 64)),
        finding._replace(label=Code("1", "SCT", "red")),
    ]
    assert len({other.identifier("report") for other in others}) == len(others)
    assert finding.identifier("report") != finding.identifier("FHIR")


def test_identifiers_are_the_same_everywhere_and_valid_in_dicom() -> None:
    unique = identifier("report", "a", "b")
    assert str(unique) == "302342ce-ac08-5d0a-800a-de15b01b0deb"
    assert dicom_uid(unique) == f"2.25.{unique.int}" and len(dicom_uid(unique)) <= 64


def test_the_device_is_what_the_model_says_of_itself(tmp_path: Path) -> None:
    folder = graph_folder(tmp_path / "model")
    with pytest.raises(CheckpointError, match="holds another model than the one that was loaded"):
        read_device(folder, "0" * 64)
    sha256 = load_predictor(folder).model_sha256
    assert read_device(folder, sha256).parts == {}
    said = {"weights_sha256": "f" * 64, "provenance": {"data": "e" * 64}}
    (folder / "model.json").write_text(json.dumps(said))
    sha256 = hashlib.sha256((folder / "model.json").read_bytes()).hexdigest()
    device = read_device(folder, sha256)
    assert device.parts == {"weights": "f" * 64, "training data": "e" * 64}
    assert device.model == sha256
