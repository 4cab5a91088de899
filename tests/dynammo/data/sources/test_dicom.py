from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLossless

from dynammo.data.checks import check_image_set
from dynammo.data.formats.dicom import window
from dynammo.data.formats.pictures import decode
from dynammo.data.sources import dicom, folder
from dynammo.data.store import ImageStore, build_store
from dynammo.errors import DataError
from tests.scans import encode


def grey(values: list[int], kind: str = "uint16", **elements: Any) -> list[int]:
    """The grey values that one row of stored values becomes."""
    pixels = decode(encode(np.array([values, values], kind), **elements))
    assert pixels.shape == (2, len(values), 3) and pixels.dtype == np.uint8
    assert (pixels == pixels[..., :1]).all()
    row: list[int] = pixels[1, :, 0].tolist()
    return row


def test_stored_bits_are_shown_in_full_range() -> None:
    assert grey([0, 128, 255], "uint8") == [0, 128, 255]
    # 12 bits in 16: 2048 / 4095 * 255 = 127.53
    assert grey([0, 2048, 4095], BitsStored=12) == [0, 128, 255]
    assert grey([-2048, 0, 2047], "int16", BitsStored=12) == [0, 128, 255]


def test_monochrome1_is_inverted() -> None:
    elements = {"PhotometricInterpretation": "MONOCHROME1"}
    assert grey([0, 51, 255], "uint8", **elements) == [255, 204, 0]
    # Exactly the inverse of the other kind, with a window, too.
    window = {"WindowCenter": 100, "WindowWidth": 51}
    values = [60, 80, 100, 111, 200]
    inverse = grey(values, "uint8", **elements, **window)
    assert [255 - value for value in inverse] == grey(values, "uint8", **window)


def test_slope_and_intercept_come_before_the_window() -> None:
    # CT: v - 1024 in Hounsfield units; the window shows -160 to 240.
    elements = {
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "WindowCenter": 40,
        "WindowWidth": 401,
        "BitsStored": 12,
    }
    # (v - 1024 - 39.5) / 400 + 0.5, times 255, at v = 864, 964, 1064, 1264, 4000
    assert grey([0, 864, 964, 1064, 1264, 4000], **elements) == [0, 0, 64, 128, 255, 255]
    assert grey([0, 10, 20], RescaleSlope=2, RescaleIntercept=5, BitsStored=12) == [0, 1, 1]
    # A negative slope turns the range round.
    assert grey([0, 255], "uint8", RescaleSlope=-1, RescaleIntercept=0) == [255, 0]


def test_of_several_windows_the_first_is_taken() -> None:
    several = {"WindowCenter": [100, 5], "WindowWidth": [101, 2]}
    assert grey([49, 50, 150, 151], **several) == grey(
        [49, 50, 150, 151], WindowCenter=100, WindowWidth=101
    )


def test_the_three_window_functions() -> None:
    # PS3.3 C.11.2.1.2.1, note 4: c = 2048, w = 4096 maps 0 to 0 and 4095 to the largest value.
    values = np.array([0.0, 2047.5, 4095.0])
    np.testing.assert_allclose(window(values, 2048, 4096), [0, 0.5, 1])
    # And c = 0, w = 1 is a step at -0.5.
    np.testing.assert_array_equal(window(np.array([-1.0, -0.5, 0.0]), 0, 1), [0, 0, 1])
    np.testing.assert_allclose(
        window(np.array([-9.0, 5, 10, 15, 99]), 10, 20, "LINEAR_EXACT"), [0, 0.25, 0.5, 0.75, 1]
    )
    # 1 / (1 + e^-4) = 0.98201
    found = window(np.array([-1e9, 10.0, 30.0, 1e9]), 10, 20, "SIGMOID")
    np.testing.assert_allclose(found, [0, 0.5, 0.982014, 1], atol=1e-6)


def test_a_voi_table_wins_over_the_window() -> None:
    table = Dataset()
    table.LUTDescriptor = [4, 10, 12]  # entries, first value, bits
    table.LUTData = np.array([0, 819, 1638, 4095], "<u2").tobytes()
    elements = {"VOILUTSequence": [table], "WindowCenter": 1, "WindowWidth": 1}
    assert grey([0, 10, 11, 12, 13, 14], **elements) == [0, 0, 51, 102, 255, 255]


def test_colour() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    np.testing.assert_array_equal(decode(encode(pixels)), pixels)
    # PS3.3 C.7.6.3.1.2: white and mid grey have both chroma at 128.
    ybr = np.array([[[255, 128, 128], [128, 128, 128]]], np.uint8)
    found = decode(encode(ybr, PhotometricInterpretation="YBR_FULL"))
    np.testing.assert_array_equal(found, [[[255] * 3, [128] * 3]])


def test_palettes() -> None:
    colours = {"Red": [0, 255], "Green": [10, 20], "Blue": [0, 1]}
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in colours.items():
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [2, 0, 8]
        elements[f"{name}PaletteColorLookupTableData"] = bytes(values)
    found = decode(encode(np.array([[0, 1]], np.uint8), **elements))
    np.testing.assert_array_equal(found, [[[0, 10, 0], [255, 20, 1]]])


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"NumberOfFrames": 24}, "it has 24 frames; expected a single picture"),
        ({"PixelData": None}, "it holds no pixels"),
        ({"PhotometricInterpretation": "HSV"}, "PhotometricInterpretation HSV; expected one of"),
        ({"Rows": 60000, "Columns": 60000}, "60000 x 60000 pixels exceed the limit"),
        ({"WindowCenter": 1, "WindowWidth": 0}, "WindowWidth 0; expected at least 1"),
        (
            {"WindowCenter": 1, "WindowWidth": 2, "VOILUTFunction": "CUBIC"},
            "VOILUTFunction CUBIC; expected LINEAR",
        ),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "RescaleSlope 0"),
    ],
)
def test_what_cannot_be_shown_is_refused(elements: dict[str, Any], message: str) -> None:
    content = encode(np.zeros((4, 4), np.uint8), **elements)
    with pytest.raises(DataError, match=f"cannot read scan.dcm: {message}"):
        decode(content, "scan.dcm")


def test_a_compression_without_decoder_is_named() -> None:
    from pydicom.encaps import encapsulate

    frame = encapsulate([b"\xff\xd8\xff\xf7 no picture \xff\xd9"])
    content = encode(np.zeros((4, 4), np.uint8), PixelData=frame, syntax=JPEGLossless)
    with pytest.raises(DataError, match=r"its compression, JPEG Lossless.*cannot be read"):
        decode(content, "scan.dcm")


def test_truncated_files_are_refused() -> None:
    content = encode(np.zeros((40, 40), np.uint16))
    for length in (140, len(content) // 2, len(content) - 100):
        with pytest.raises(DataError, match=r"cannot read scan\.dcm"):
            decode(content[:length], "scan.dcm")


def study(root: Path, file: str, patient: str, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 4096, (20, 20), np.uint16)
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(pixels, BitsStored=12, PatientID=patient))


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    for number in range(8):
        split = "train" if number < 4 else "test"
        study(tmp_path, f"{split}/{'ab'[number % 2]}/{number}.dcm", f"P{number // 2}", number)
    return tmp_path


def test_patients_are_groups_without_their_names(studies: Path, tmp_path: Path) -> None:
    found = dicom.load(studies)
    check_image_set(found)
    groups = {sample.file[-5]: sample.group for sample in found.samples}
    assert groups["0"] == groups["1"] != groups["2"]
    assert not any("P0" in str(group) for group in groups.values())
    study(studies, "test/a/9.dcm", "P0", 9)
    with pytest.raises(DataError, match=r"group 'patient .*' is in train and in test"):
        check_image_set(dicom.load(studies))
    check_image_set(dicom.load(studies, patients=False))


def test_files_without_a_patient_have_no_group(tmp_path: Path) -> None:
    for split in ("train", "test"):
        study(tmp_path, f"{split}/a/0.dcm", "", seed=len(split))
    assert {sample.group for sample in dicom.load(tmp_path).samples} == {None}


def test_a_csv_may_name_files_of_any_extension_and_groups(studies: Path) -> None:
    study(studies, "raw/IM0001", "P7", 1)
    study(studies, "raw/IM0002", "P8", 2)
    (studies / "manifest.csv").write_text(
        "file,split,class,group\nraw/IM0001,train,a,mine\nraw/IM0002,test,a,\n"
    )
    test, train = dicom.load(studies).samples
    assert train.group == "mine"
    assert test.group is not None and test.group.startswith("patient ")


def test_columns_are_of_a_csv(studies: Path) -> None:
    with pytest.raises(DataError, match=r"has no columns \(age\): expected a CSV"):
        dicom.load(studies, columns=["age"])
    (studies / "manifest.csv").write_text(
        "file,split,class,age\ntrain/a/0.dcm,train,a,50\ntest/a/4.dcm,test,a,\n"
    )
    test, train = dicom.load(studies, columns=["age"]).samples
    assert (train.columns, test.columns) == ((("age", "50"),), (("age", ""),))


def test_other_files_are_all_named(studies: Path) -> None:
    for file in ("train/a/0.dcm", "test/b/5.dcm"):
        (studies / file).write_bytes(b"no scan")
    with pytest.raises(DataError) as caught:
        dicom.load(studies)
    assert caught.value.problems == [
        "test/b/5.dcm is no DICOM file",
        "train/a/0.dcm is no DICOM file",
    ]


def test_the_store_holds_what_serving_sees(studies: Path, tmp_path: Path) -> None:
    listed = folder.load(studies)
    opened = ImageStore.open(build_store(listed, 20, tmp_path / "store"))
    (image,) = opened.load(listed.samples[:1])
    expected = decode(studies / listed.samples[0].file)
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
