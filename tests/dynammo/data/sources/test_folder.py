from __future__ import annotations

from pathlib import Path

import pytest

from dynammo.data.sources.folder import holds_slices, image_files, load
from dynammo.errors import DataError


def write(root: Path, *files: str) -> None:
    """Files with their own names as content: listing does not decode."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(file)


def test_images_of_all_classes_are_listed(tmp_path: Path) -> None:
    files = ["test/a/1.png", "test/b/1.JPEG", "train/a/1.png", "train/b/deep/er/1.tif"]
    write(tmp_path, *files)
    image_set = load(tmp_path)
    assert [sample.file for sample in image_set.samples] == files
    assert [sample.label for sample in image_set.samples] == ["a", "b", "a", "b"]
    assert [sample.split for sample in image_set.samples] == ["test", "test", "train", "train"]
    assert {sample.group for sample in image_set.samples} == {None}
    assert len({sample.sha256 for sample in image_set.samples}) == 4
    assert image_set.root == tmp_path


def test_hidden_files_and_other_files_are_ignored(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.png", "test/a/1.png")
    expected = load(tmp_path)
    write(tmp_path, "README.md", "train/Thumbs.db", "train/a/notes.txt", "train/a/._1.png")
    write(tmp_path, "train/.ipynb_checkpoints/1.png", "train/a/.cache/1.png", "other/a/1.png")
    assert load(tmp_path) == expected


def test_the_content_hash_is_the_same_in_another_folder(tmp_path: Path) -> None:
    hashes = set()
    for name in ("here", "there"):
        write(tmp_path / name, "train/a/1.png", "test/a/1.png")
        hashes.add(load(tmp_path / name).content_hash)
    assert len(hashes) == 1


def test_linked_files_and_folders_count(tmp_path: Path) -> None:
    write(tmp_path, "cache/1.png", "cache/deep/2.png", "test/a/1.png")
    (tmp_path / "train/a").mkdir(parents=True)
    (tmp_path / "train/a/1.png").symlink_to(tmp_path / "cache/1.png")  # DVC can do this
    (tmp_path / "train/a/deep").symlink_to(tmp_path / "cache/deep")
    files = [sample.file for sample in load(tmp_path).select("train", ["a"])]
    assert files == ["train/a/1.png", "train/a/deep/2.png"]


def test_missing_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path / "gone")
    assert caught.value.problems == [
        f"{tmp_path / 'gone' / split}: no such folder; expected {split}/<class>/<image>"
        for split in ("train", "test")
    ]


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/notes.txt", "train/lost.png")
    write(tmp_path, "test/a/1.png", "test/d/1.png")
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    lost, empty, *one_sided = caught.value.problems
    assert lost == f"{tmp_path}/train/lost.png: image in no class folder"
    assert empty.startswith(
        f"{tmp_path}/train/c: class folder without images (.bmp, .dcm, .dicom, .gif"
    )
    assert one_sided == [
        "class 'b' is in train but not in test",
        "class 'c' is in train but not in test",
        "class 'd' is in test but not in train",
    ]


def test_a_split_without_classes_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.png", "test/README")
    with pytest.raises(DataError, match="test: no class folders") as caught:
        load(tmp_path)
    assert len(caught.value.problems) == 1


def test_a_dangling_link_is_named(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.png", "test/a/1.png")
    (tmp_path / "train/a/2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"cannot read .*train/a/2\.png: No such file"):
        load(tmp_path)


def test_volumes_are_files_and_folders_of_slices(tmp_path: Path) -> None:
    slices = [f"train/a/series/{n}.png" for n in range(3)]
    files = [
        "train/a/1.nii.gz",
        "train/a/2.npy",
        "train/a/deep/3.NII",
        "train/a/5.MKV",
        "test/a/4.tif",
    ]
    write(tmp_path, *slices, *files, "train/a/.nii.gz", "train/a/notes.gz")
    image_set = load(tmp_path, volumes=True)
    assert [sample.file for sample in image_set.samples] == [
        *("test/a/4.tif", "train/a/1.nii.gz", "train/a/2.npy", "train/a/5.MKV"),
        *("train/a/deep/3.NII", "train/a/series"),
    ]
    assert image_files(tmp_path / "train", volumes=True) == [
        tmp_path / sample.file for sample in image_set.samples[1:]
    ]
    assert holds_slices(tmp_path / "train/a/series") and not holds_slices(tmp_path / "train/a")
