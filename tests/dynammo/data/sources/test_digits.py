from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dynammo.data.checks import check_image_set, repeats
from dynammo.data.formats.pictures import decode
from dynammo.data.samples import ImageSet
from dynammo.data.sources import digits
from dynammo.errors import DataError


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return digits.load(tmp_path_factory.mktemp("data") / "new" / "digits")


def test_the_files_are_those_that_the_constant_names(written: ImageSet) -> None:
    # The constant was computed once, on Linux with scikit-learn 1.9.1.
    assert written.content_hash == digits.CONTENT_HASH
    assert [entry.name for entry in written.root.parent.iterdir()] == ["digits"]


def test_every_class_is_split_80_to_20(written: ImageSet) -> None:
    assert written.classes == tuple("0123456789")
    count = Counter((sample.split, sample.label) for sample in written.samples)
    assert sum(count.values()) == 1797
    for name in written.classes:
        share = count["test", name] / (count["train", name] + count["test", name])
        assert 0.19 < share <= 0.2


def test_no_image_occurs_twice(written: ImageSet) -> None:
    check_image_set(written)
    assert len({sample.sha256 for sample in written.samples}) == 1797
    assert repeats(written.samples, lambda sample: sample.sha256) == []


def test_pixels_and_labels_are_scikit_learns(written: ImageSet) -> None:
    data = load_digits()
    for sample in written.samples[::100]:
        index = int(Path(sample.file).stem)
        assert sample.label == str(data.target[index])
        grey = decode(written.root / sample.file)[..., 0]
        np.testing.assert_array_equal(grey, np.floor(data.images[index] * 255 / 16 + 0.5))


def test_a_folder_that_holds_the_digits_is_left_alone(written: ImageSet) -> None:
    file = written.root / written.samples[0].file
    before = file.stat().st_mtime_ns
    (written.root / "README").write_text("mine")
    digits.load(written.root)
    assert digits.load(written.root) == written
    assert file.stat().st_mtime_ns == before
    assert (written.root / "README").read_text() == "mine"


def test_an_empty_folder_is_filled_but_a_changed_file_is_refused_and_kept(tmp_path: Path) -> None:
    digits.load(tmp_path)
    file = tmp_path / "train" / "0" / "0000.pgm"
    assert file.is_file()
    file.write_bytes(b"P5\n8 8\n255\n" + bytes(64))
    with pytest.raises(DataError, match=f"its content hash is .*, expected {digits.CONTENT_HASH}"):
        digits.load(tmp_path)
    assert file.read_bytes().endswith(bytes(64))


@pytest.mark.parametrize("file", ["notes.txt", "train/a/1.png"])
def test_a_folder_with_something_else_is_refused_and_kept(file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(DataError, match="holds something other than the digits; move it"):
        digits.load(tmp_path)
    assert [entry for entry in tmp_path.rglob("*") if entry.is_file()] == [path]


def test_scikit_learn_with_other_digits_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = load_digits()
    other.images[0] = 0
    monkeypatch.setattr(digits, "load_digits", lambda: other)
    with pytest.raises(DataError, match=f"expected {digits.CONTENT_HASH}"):
        digits.load(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []
