from __future__ import annotations

import gzip
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from dynammo.data.formats.pictures import Form, HashedFile, as_given, load_image, sheet
from dynammo.data.formats.volumes import load_volume, read_volume
from dynammo.data.samples import hash_file
from dynammo.errors import DataError

FORM = Form(16, slices=4)


def levels(*values: float, side: int = 16) -> NDArray[np.uint8]:
    """(N, side, side): slices of one grey value each."""
    return np.stack([np.full((side, side), value, np.uint8) for value in values])


def greys(strip: NDArray[np.uint8], slices: int = 4) -> list[int]:
    """The value of each slice of a strip, all of it."""
    own = strip.reshape(slices, -1)
    assert (own == own[:, :1]).all()
    return own[:, 0].tolist()


def slice_file(z: float | None, value: int = 0, **more: str) -> bytes:
    """A CT slice whose stored values are its Hounsfield units."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID, dataset.PatientID = "1.2.3", "p1"
    for name, text in more.items():
        setattr(dataset, name, text)
    if z is not None:
        dataset.ImagePositionPatient = [0, 0, z]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.Rows = dataset.Columns = 16
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.PixelData = np.full((16, 16), value, np.int16).tobytes()
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def series(folder: Path, *slices: bytes) -> Path:
    folder.mkdir()
    for number, content in enumerate(slices):
        (folder / f"{number}.dcm").write_bytes(content)
    return folder


def test_slices_become_parts_of_the_volumes_length() -> None:
    """By hand: of 6 slices in 4 parts each part has 1.5; of 2 slices each is repeated."""
    assert greys(load_volume(levels(0, 30, 60, 90, 120, 150), FORM)) == [10, 50, 100, 140]
    assert greys(load_volume(levels(10, 20, 30, 40), FORM)) == [10, 20, 30, 40]
    assert greys(load_volume(levels(10, 200), FORM)) == [10, 10, 200, 200]
    assert greys(load_volume(levels(*range(0, 160, 20)), FORM)) == [10, 50, 90, 130]


def test_a_strip_is_what_its_slices_are() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    strip = load_image(noise, FORM)
    assert strip.shape == FORM.shape == (64, 16, 3)
    np.testing.assert_array_equal(as_given(strip, FORM), noise)
    np.testing.assert_array_equal(load_image(as_given(strip, FORM), FORM), strip)


def test_a_sheet_has_its_slices_in_rows() -> None:
    strip = load_image(levels(10, 20, 30), Form(16, 3))
    assert sheet(strip)[::16, ::16, 0].tolist() == [[10, 20], [30, 0]]
    picture = np.zeros((16, 16, 3), np.uint8)
    np.testing.assert_array_equal(sheet(picture), picture)


def test_pages_and_arrays(tmp_path: Path) -> None:
    volume = levels(0, 80, 160, 240)
    pages = [Image.fromarray(page) for page in volume]
    pages[0].save(tmp_path / "v.tif", save_all=True, append_images=pages[1:])
    np.save(tmp_path / "v.npy", volume)
    np.save(tmp_path / "floats.npy", volume.astype(np.float32) / 255)
    np.save(tmp_path / "deep.npy", volume.astype(np.uint16) * 257)
    for name in ("v.tif", "v.npy", "floats.npy", "deep.npy"):
        assert greys(load_image(tmp_path / name, FORM)) == [0, 80, 160, 240]
        assert greys(load_image((tmp_path / name).read_bytes(), FORM)) == [0, 80, 160, 240]


def test_values_without_a_range_go_through_a_window() -> None:
    units = np.stack([np.full((16, 16), own, np.int16) for own in (-1000, -160, 40, 240)])
    assert greys(load_volume(units, FORM._replace(window=(-160, 240)))) == [0, 0, 128, 255]
    assert greys(load_volume(units, FORM)) == [0, 173, 214, 255]  # from -1000 to 240
    with pytest.raises(DataError, match="no finite numbers"):
        load_volume(np.full((3, 16, 16), np.nan), FORM)


def test_nifti_from_the_feet_in_the_radiologists_view(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    values = np.zeros((16, 16, 4), np.int16)  # right, anterior, superior
    values[..., 3] = 100
    values[:8, :, 0] = 50  # the patient's left half
    image = nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 2.0, 1.0]))
    nibabel.save(image, tmp_path / "v.nii.gz")
    form = FORM._replace(window=(0, 100))
    strip = load_image(tmp_path / "v.nii.gz", form).reshape(4, 16, 16, 3)[..., 0]
    assert (strip[3] == 255).all() and (strip[1:3] == 0).all()
    # The patient's left is on the right.
    assert (strip[0, :, 8:] == 128).all() and (strip[0, :, :8] == 0).all()
    # Stored the other way round along an axis, it is the same volume.
    turned = nibabel.Nifti1Image(values[:, :, ::-1], np.diag([1.0, 1.0, -2.0, 1.0]))
    content = gzip.compress(turned.to_bytes())
    np.testing.assert_array_equal(load_image(content, form).reshape(4, 16, 16, 3)[..., 0], strip)
    with pytest.raises(DataError, match=r"axes of \(4, 4, 4, 2\); expected three"):
        load_image(
            nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)).to_bytes(), form
        )


def test_the_distance_of_slices_is_known(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.zeros((8, 8, 4), np.int16), np.diag([1.0, 1.0, 0.25, 1.0]))
    assert read_volume(image.to_bytes(), FORM).spacing == 0.25
    image.header.set_xyzt_units("micron")
    assert read_volume(image.to_bytes(), FORM).spacing == pytest.approx(0.00025)
    spoilt = bytearray(image.to_bytes())
    at = spoilt.index(np.array([0, 0, 0.25, 0], "<f4").tobytes())  # srow_z
    spoilt[at + 8 : at + 12] = bytes(4)
    with pytest.raises(DataError, match=r"voxels of \[1\. +1\. +0\. *\]; expected sizes above 0"):
        load_volume(bytes(spoilt), FORM)
    folder = series(tmp_path / "s", *(slice_file(z) for z in (7.5, 0.0, 2.5, 5.0)))
    assert read_volume(folder, FORM).spacing == 2.5
    assert read_volume(levels(1, 2, 3), FORM).spacing is None


def test_a_series_is_in_the_order_of_its_positions(tmp_path: Path) -> None:
    folder = series(tmp_path / "s", *(slice_file(z, int(z * 10)) for z in (7.5, 0.0, 2.5, 5.0)))
    form = FORM._replace(window=(0, 255))
    assert greys(load_image(folder, form)) == [0, 25, 50, 75]
    numbered = series(
        tmp_path / "n", *(slice_file(None, n, InstanceNumber=str(n)) for n in (2, 1, 4, 3))
    )
    assert greys(load_image(numbered, form)) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("slices", "problem"),
    [
        (
            [slice_file(0), slice_file(1), slice_file(2), slice_file(6)],
            "slices are missing between 2.dcm and 3.dcm, 4 mm apart where others are 1 mm",
        ),
        (
            [slice_file(0), slice_file(1), slice_file(1.5), slice_file(2.5)],
            "slices are unequally spaced: 1.dcm and 2.dcm, 0.5 mm apart where others are 1 mm",
        ),
        ([slice_file(0), slice_file(1), slice_file(1)], "1.dcm and 2.dcm are at the same place"),
        ([slice_file(0), slice_file(1, PatientID="p2")], "slices of 2 patients: 0.dcm and 1.dcm"),
        (
            [slice_file(0), slice_file(1, SeriesInstanceUID="1.9")],
            "slices of 2 series: 0.dcm and 1.dcm",
        ),
        (
            [slice_file(0), slice_file(None, InstanceNumber="2")],
            "1.dcm has no ImagePositionPatient, and other slices have one",
        ),
        ([slice_file(0), b"no DICOM"], "1.dcm: it is no DICOM file, and others of the folder are"),
        ([slice_file(0)], "a single picture; expected a volume \\(image.slices 4\\)"),
    ],
)
def test_series_that_are_refused(tmp_path: Path, slices: list[bytes], problem: str) -> None:
    folder = series(tmp_path / "s", *slices)
    with pytest.raises(DataError, match=problem) as caught:
        load_image(folder, FORM)
    assert str(folder) in str(caught.value)


def test_frames_of_one_dicom_file() -> None:
    dataset_bytes = slice_file(0)
    from pydicom import dcmread

    dataset = dcmread(BytesIO(dataset_bytes))
    dataset.NumberOfFrames = 4
    dataset.PixelData = np.stack([np.full((16, 16), v, np.int16) for v in (0, 1, 2, 3)]).tobytes()
    rescaling = Dataset()
    rescaling.RescaleSlope, rescaling.RescaleIntercept = "10", "5"
    inner = Dataset()
    inner.PixelValueTransformationSequence = [rescaling]
    dataset.SharedFunctionalGroupsSequence = [inner]
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    form = FORM._replace(window=(0, 255))
    assert greys(load_image(file.getvalue(), form)) == [5, 15, 25, 35]
    with pytest.raises(DataError, match="it has 4 frames; expected a single picture"):
        load_image(file.getvalue(), 16)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no kind of volume that can be read"),
        (b"\x93NUMPY", "."),
        (b"\x1f\x8bdamaged", "."),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "v.nii.gz"
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"cannot read {file}: .*({problem})"):
        load_image(file, FORM)


def test_a_picture_is_no_volume_and_a_volume_no_picture(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a.png: a single picture; expected a volume"):
        load_image(tmp_path / "a.png", FORM)
    with pytest.raises(DataError, match="expected"):
        load_image(np.zeros((4, 16, 16, 3), np.uint8), 16)


def test_a_folders_hash_is_of_names_and_contents(tmp_path: Path) -> None:
    folder = series(tmp_path / "s", slice_file(0), slice_file(1))
    before = hash_file(folder)
    hashed = HashedFile(folder)
    load_image(hashed, FORM)
    assert hashed.sha256 == before
    (folder / ".hidden").write_bytes(b"x")
    assert hash_file(folder) == before
    (folder / "0.dcm").rename(folder / "z.dcm")
    assert hash_file(folder) != before
