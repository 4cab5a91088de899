from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynammo.data.formats.pictures import decode
from dynammo.data.sources import medmnist
from dynammo.data.sources.medmnist import SETS, SIZES, Subset
from dynammo.errors import ConfigError, DataError


def arrays(channels: int, size: int = 28, classes: int = 2, seed: int = 0) -> dict[str, Any]:
    """What an official file holds: images and labels of three splits."""
    random = np.random.default_rng(seed)
    shape = (size, size) if channels == 1 else (size, size, channels)
    found: dict[str, Any] = {}
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        found[f"{split}_images"] = random.integers(0, 256, (count, *shape), np.uint8)
        found[f"{split}_labels"] = (np.arange(count) % classes).astype(np.uint8)[:, None]
    return found


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DYNAMMO_HOME", str(tmp_path))
    monkeypatch.setattr(medmnist, "URL", "http://127.0.0.1:9/{file}")
    (tmp_path / "downloads").mkdir()
    return tmp_path / "downloads"


def put(
    downloads: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: dict[str, Any]
) -> None:
    """Write a tiny file of a set, and put its checksum into the table."""
    size = content["train_images"].shape[1] if "train_images" in content else 28
    path = downloads / (f"{name}.npz" if size == 28 else f"{name}_{size}.npz")
    np.savez_compressed(path, **content)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    subset = Subset(SETS[name].classes, (md5, md5, md5, md5))
    monkeypatch.setitem(SETS, name, subset)


def test_one_set_has_its_own_class_names(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = arrays(1)
    put(downloads, monkeypatch, "pneumoniamnist", content)
    found = medmnist.load(tmp_path / "data", ["pneumoniamnist"])
    assert found.classes == ("normal", "pneumonia")
    assert [s.file for s in found.select("test", found.classes)] == [
        "test/normal/pneumoniamnist-000000.pgm",
        "test/pneumonia/pneumoniamnist-000001.pgm",
    ]
    for index in range(4):
        label = ("normal", "pneumonia")[index % 2]
        pixels = decode(found.root / f"train/{label}/pneumoniamnist-{index:06}.pgm")
        np.testing.assert_array_equal(pixels[..., 1], content["train_images"][index])
    # The validation images are in neither split.
    assert len(found.samples) == 6


def test_several_sets_become_one_stream(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blood = arrays(3, 64, classes=2, seed=1)
    put(downloads, monkeypatch, "bloodmnist", blood)
    put(downloads, monkeypatch, "breastmnist", arrays(1, 64, seed=2))
    found = medmnist.load(tmp_path / "data", ["bloodmnist", "breastmnist"], size=64)
    assert found.classes == (
        "bloodmnist.basophil",
        "bloodmnist.eosinophil",
        "breastmnist.malignant",
        "breastmnist.normal, benign",
    )
    pixels = decode(found.root / "test/bloodmnist.eosinophil/bloodmnist-000001.ppm")
    np.testing.assert_array_equal(pixels, blood["test_images"][1])
    with pytest.raises(DataError, match="holds something other than MedMNIST bloodmnist;"):
        medmnist.load(tmp_path / "data", ["bloodmnist"], size=64)


def test_another_size_in_the_folder_is_noticed(
    downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(downloads, monkeypatch, "breastmnist", arrays(1))
    medmnist.load(tmp_path / "data", ["breastmnist"])
    with pytest.raises(DataError, match=r"it was made with .*'size': 28.*'size': 64"):
        medmnist.load(tmp_path / "data", ["breastmnist"], size=64)


@pytest.mark.parametrize(
    ("sets", "size", "problems"),
    [
        ([], 28, ["a list of different sets"]),
        ("bloodmnist", 28, ["a list of different sets, got 'bloodmnist'"]),
        (["bloodmnist", "bloodmnist"], 28, ["a list of different sets"]),
        (["chestmnist", "nomnist"], 32, ["several labels an image", "'nomnist' is unknown", "32"]),
    ],
)
def test_bad_options(sets: Any, size: int, problems: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        medmnist.load(tmp_path / "data", sets, size)
    assert len(caught.value.problems) == len(problems)
    for problem, text in zip(caught.value.problems, problems, strict=True):
        assert text in problem


def pickled(content: dict[str, Any]) -> None:
    content["train_images"] = np.array([{"a": 1}], dtype=object)


def short(content: dict[str, Any]) -> None:
    content["test_images"] = content["test_images"][:1]


def foreign_label(content: dict[str, Any]) -> None:
    content["train_labels"][3] = 2


def floats(content: dict[str, Any]) -> None:
    content["train_images"] = content["train_images"].astype(np.float32)


def no_test(content: dict[str, Any]) -> None:
    del content["test_images"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pickled, "Python objects"),
        (short, "test has 2 labels and 1 images"),
        (foreign_label, "train image 3 has no label of 0 to 1"),
        (floats, r"train_images has float32 \(28, 28\); expected uint8"),
        (no_test, "test_images.npy"),
    ],
)
def test_damaged_files_are_refused_and_nothing_is_left(
    damage: Any,
    message: str,
    downloads: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = arrays(1)
    damage(content)
    if damage is pickled:
        np.savez(downloads / "breastmnist.npz", **content)
        md5 = hashlib.md5((downloads / "breastmnist.npz").read_bytes()).hexdigest()
        monkeypatch.setitem(SETS, "breastmnist", Subset(SETS["breastmnist"].classes, (md5,) * 4))
    else:
        put(downloads, monkeypatch, "breastmnist", content)
    with pytest.raises(DataError, match=f"is no MedMNIST file of breastmnist: .*{message}"):
        medmnist.load(tmp_path / "data", ["breastmnist"])
    assert not (tmp_path / "data").exists()


def test_the_table_is_well_formed() -> None:
    checksums = [md5 for subset in SETS.values() for md5 in subset.md5]
    assert len(set(checksums)) == len(SETS) * len(SIZES) == 44
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in checksums)
    for subset in SETS.values():
        assert len(set(subset.classes)) == len(subset.classes) >= 2
        assert not any("/" in name for name in subset.classes)
