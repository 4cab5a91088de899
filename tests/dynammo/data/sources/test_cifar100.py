from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dynammo.data.formats.pictures import decode
from dynammo.data.sources import cifar100
from dynammo.errors import DataError

NAMES = ["apple", "aquarium_fish", "baby"]


def record(superclass: int, label: int, seed: int) -> bytes:
    """3,074 bytes: two labels, then 1,024 of red, of green and of blue, row by row."""
    planes = np.random.default_rng(seed).integers(0, 256, (3, 32, 32), np.uint8)
    return bytes([superclass, label]) + planes.tobytes()


def archive(path: Path, **files: bytes) -> None:
    content = {
        "fine_label_names.txt": "\n".join(NAMES).encode() + b"\n",
        "train.bin": b"".join(record(9, n % 3, n) for n in range(6)),
        "test.bin": b"".join(record(9, n, 100 + n) for n in range(3)),
    }
    content |= {name.replace("_", ".", 1): value for name, value in files.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(f"cifar-100-binary/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DYNAMMO_HOME", str(tmp_path))
    monkeypatch.setattr(cifar100, "URL", "http://127.0.0.1:9/cifar-100-binary.tar.gz")
    return tmp_path / "downloads" / "cifar-100-binary.tar.gz"


def put(downloads: Path, monkeypatch: pytest.MonkeyPatch, **files: bytes) -> None:
    archive(downloads, **files)
    monkeypatch.setattr(cifar100, "MD5", hashlib.md5(downloads.read_bytes()).hexdigest())


def test_the_pictures_are_those_of_the_archive(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(downloads, monkeypatch)
    found = cifar100.load(tmp_path / "data")
    assert found.classes == ("apple", "aquarium_fish", "baby")
    assert [s.file for s in found.select("train", ["baby"])] == [
        "train/baby/00002.ppm",
        "train/baby/00005.ppm",
    ]
    planes = np.random.default_rng(5).integers(0, 256, (3, 32, 32), np.uint8)
    pixels = decode(found.root / "train/baby/00005.ppm")
    for channel in range(3):
        np.testing.assert_array_equal(pixels[..., channel], planes[channel])


def test_it_is_written_once_and_checked(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(downloads, monkeypatch)
    first = cifar100.load(tmp_path / "data")
    downloads.unlink()
    assert cifar100.load(tmp_path / "data") == first
    (tmp_path / "data" / "train" / "baby" / "00002.ppm").unlink()
    with pytest.raises(DataError, match="does not hold CIFAR-100: its content hash is"):
        cifar100.load(tmp_path / "data")


def test_a_folder_of_something_else_is_refused(downloads: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="holds something other than CIFAR-100; move it"):
        cifar100.load(tmp_path / "data")


def test_without_a_network_nothing_is_left(downloads: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"put it at {downloads}"):
        cifar100.load(tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train_bin": b"123"}, "train.bin has 3 bytes; expected a multiple of 3074"),
        ({"test_bin": record(0, 3, 0)}, "test.bin has label 3 of 3 names"),
    ],
)
def test_damaged_contents_are_named(
    files: dict[str, bytes],
    message: str,
    downloads: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(downloads, monkeypatch, **files)
    with pytest.raises(DataError, match=message):
        cifar100.load(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_the_archive_of_pickles_is_refused(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads.parent.mkdir()
    with tarfile.open(downloads, "w:gz") as tar:
        info = tarfile.TarInfo("cifar-100-python/train")
        tar.addfile(info, io.BytesIO())
    monkeypatch.setattr(cifar100, "MD5", hashlib.md5(downloads.read_bytes()).hexdigest())
    with pytest.raises(DataError, match=r"holds no fine_label_names\.txt, test\.bin, train\.bin"):
        cifar100.load(tmp_path / "data")
    downloads.write_bytes(b"no tar")
    monkeypatch.setattr(cifar100, "MD5", hashlib.md5(b"no tar").hexdigest())
    with pytest.raises(DataError, match=r"cannot read .*gz: "):
        cifar100.load(tmp_path / "data")
