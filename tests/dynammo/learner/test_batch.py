"""Batches as they arrive."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynammo.config import ClinicalConfig
from dynammo.data.samples import ImageSet, Sample
from dynammo.errors import DataError
from dynammo.learner.batch import load_batch, split_off
from dynammo.learner.ledger import Ledger, check_splits

KEY = "01" * 32
EMPTY = Ledger.empty()


def write(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.rpartition("/")[2].encode())  # its name is its content
    return root


def listed(image_set: ImageSet) -> list[tuple[str, str, str]]:
    return sorted((sample.split, sample.label, sample.file) for sample in image_set.samples)


def sample(name: str, split: str, group: str | None = None, label: str = "a") -> Sample:
    return Sample(f"{name}.png", split, label, group, f"{ord(name[0]):064x}")


@pytest.mark.parametrize("top", ["", "train/"])
def test_class_folders_are_training_images(tmp_path: Path, top: str) -> None:
    write(tmp_path, f"{top}a/1.png", f"{top}a/2.png", f"{top}b/3.png")
    batch, left_out = load_batch(tmp_path, 0.0, EMPTY, KEY)
    assert left_out == 0
    assert {(split, label) for split, label, _ in listed(batch)} == {("train", "a"), ("train", "b")}


def test_a_csv_without_a_split_is_training_images(tmp_path: Path) -> None:
    write(tmp_path, "1.png", "2.png")
    (tmp_path / "batch.csv").write_text("file,class\n1.png,a\n2.png,a\n")
    batch, _ = load_batch(tmp_path / "batch.csv", 0.5, EMPTY, KEY)
    assert sorted(split for split, _, _ in listed(batch)) == ["test", "train"]


def test_a_share_is_split_off_by_group_and_only_where_there_are_no_test_images() -> None:
    samples = [sample(f"{n}x", "train", f"group {n // 2}") for n in range(8)]
    samples += [sample("k", "train", label="b"), sample("l", "test", label="b")]
    result = split_off(ImageSet(Path(), tuple(samples)), 0.25)
    tested = [own for own in result.samples if own.split == "test" and own.label == "a"]
    assert len(tested) == 2
    assert len({own.group for own in tested}) == 1
    assert {own.split for own in result.samples if own.label == "b"} == {"train", "test"}
    again = split_off(ImageSet(Path(), tuple(samples[::-1])), 0.25)
    assert set(again.samples) == set(result.samples)


def test_one_group_alone_stays_in_training() -> None:
    result = split_off(ImageSet(Path(), tuple(sample(n, "train", "g") for n in "123")), 0.9)
    assert {own.split for own in result.samples} == {"train"}


def test_known_groups_stay_what_they_were() -> None:
    samples = tuple(sample(n, "train", f"group {n}") for n in "1234")
    known = {"group 1": True, "group 2": False}
    result = split_off(ImageSet(Path(), samples), 0.5, known)
    split = {own.group: own.split for own in result.samples}
    assert (split["group 1"], split["group 2"]) == ("test", "train")
    assert list(split.values()).count("test") == 2


def test_images_learnt_before_are_left_out(tmp_path: Path) -> None:
    first = write(tmp_path / "first", "train/a/1.png", "test/a/2.png")
    batch, _ = load_batch(first, 0.2, EMPTY, KEY)
    ledger = Ledger.of(batch.samples, 1, KEY)
    with pytest.raises(DataError, match="all 2 images have been learnt before"):
        load_batch(first, 0.2, ledger, KEY)
    again = write(tmp_path / "again", "a/1.png", "a/2.png", "a/3.png", "a/4.png")
    batch, left_out = load_batch(again, 0.0, ledger, KEY)
    assert left_out == 2  # the test image too: the batch does not say what it is
    assert [file for _, _, file in listed(batch)] == ["a/3.png", "a/4.png"]
    batch, left_out = load_batch(again, 0.0, ledger, "02" * 32)
    assert left_out == 0  # nobody can tell without the key


def test_a_patient_who_was_tested_on_is_tested_on_again(tmp_path: Path) -> None:
    seen = [sample("1", "test", "p"), sample("2", "train", "q")]
    ledger = Ledger.of(seen, 1, KEY)
    root = write(tmp_path, "4.png", "5.png", "6.png", "7.png")
    rows = ["file,class,group", "4.png,a,p", "5.png,a,q", "6.png,a,", "7.png,a,"]
    (root / "batch.csv").write_text("\n".join(rows))
    batch, left_out = load_batch(root / "batch.csv", 0.25, ledger, KEY)
    assert left_out == 0
    assert listed(batch)[0] == ("test", "a", "4.png")
    assert [split for split, _, _ in listed(batch)] == ["test", "train", "train", "train"]


def test_mixed_splits_are_refused_all_at_once() -> None:
    seen = [sample("1", "train", "p"), sample("2", "test", "q"), sample("3", "train")]
    ledger = Ledger.of(seen, 1, KEY)
    fine = [sample("4", "train", "p"), sample("5", "test", "q"), sample("6", "test")]
    check_splits(fine, ledger, KEY)
    wrong = [sample("3", "test"), sample("7", "test", "p"), sample("8", "train", "q")]
    with pytest.raises(DataError) as caught:
        check_splits(wrong, ledger, KEY)
    assert len(caught.value.problems) == 3
    assert "this image was a training image" in caught.value.problems[0]
    assert "another image of group 'p' was a training image" in caught.value.problems[1]
    check_splits(wrong, ledger.without([1]), KEY)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["test/b/1.png", "train/a/2.png", "test/a/3.png"], "class 'b' has no training images"),
        ([], "no class folders"),
    ],
)
def test_what_cannot_be_learnt_is_refused(tmp_path: Path, files: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_batch(write(tmp_path, *files), 0.2, EMPTY, KEY)
    with pytest.raises(DataError, match="no such file or folder"):
        load_batch(tmp_path / "absent", 0.2, EMPTY, KEY)


def test_test_images_alone_keep_further_columns(tmp_path: Path) -> None:
    write(tmp_path, *(f"{number}.png" for number in range(8)))
    lines = [f"{number}.png,a,{'fm'[number % 2]}" for number in range(8)]
    (tmp_path / "batch.csv").write_text("\n".join(["file,class,sex", *lines]))
    batch, _ = load_batch(tmp_path / "batch.csv", 0.5, EMPTY, KEY, ["sex"])
    kept = {own.file: own.columns for own in batch.samples if own.split == "test"}
    assert len(kept) == 4
    assert kept == {file: (("sex", "fm"[int(file[0]) % 2]),) for file in kept}
    assert all(own.columns == () for own in batch.samples if own.split == "train")
    clinical = ClinicalConfig(numbers=["age"])
    aged = [f"{line},{20 + number}" for number, line in enumerate(lines)]
    (tmp_path / "batch.csv").write_text("\n".join(["file,class,sex,age", *aged]))
    batch, _ = load_batch(tmp_path / "batch.csv", 0.5, EMPTY, KEY, ["sex"], clinical)
    names = {own.split: [name for name, _ in own.columns] for own in batch.samples}
    assert names == {"train": ["age"], "test": ["sex", "age"]}
    (tmp_path / "batch.csv").write_text("file,class,age\n0.png,a,old\n1.png,a,nan\n2.png,a,\n")
    with pytest.raises(DataError) as caught:
        load_batch(tmp_path / "batch.csv", 0.5, EMPTY, KEY, [], clinical)
    assert [own.partition(": ")[2] for own in caught.value.problems] == [
        "0.png: age: 'old' is no number",
        "1.png: age: 'nan' is no number",
    ]
    write(tmp_path / "folder", "a/1.png")
    with pytest.raises(DataError, match=r"is a folder, and the learner asks for sex"):
        load_batch(tmp_path / "folder", 0.0, EMPTY, KEY, ["sex"])
