from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynammo.data.samples import (
    ImageSet,
    Sample,
    hash_file,
    hash_files,
    read_manifest,
    subset_hash,
    write_manifest,
)
from dynammo.errors import DataError

A = Sample("train/a/1.png", "train", "a", None, "1" * 64)
B = Sample("train/b/1.png", "train", "b", "patient 1", "2" * 64)
C = Sample("test/a/1.png", "test", "a", None, "3" * 64)
D = Sample("train/a/0.png", "train", "a", None, "4" * 64)
IMAGES = ImageSet(Path("/data"), (A, B, C, D))

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
samples = st.builds(
    Sample, names, st.sampled_from(["train", "test"]), names, st.none() | names, names
)


def test_samples_are_sorted_by_split_class_and_file() -> None:
    assert IMAGES.samples == (C, D, A, B)
    assert IMAGES.classes == ("a", "b")


def test_select_follows_the_order_of_the_classes_then_the_file() -> None:
    assert IMAGES.select("train", ["b", "a"]) == (B, D, A)
    assert IMAGES.select("train", ["a"]) == (D, A)
    assert IMAGES.select("train", []) == ()


def test_select_names_every_class_that_has_no_images() -> None:
    with pytest.raises(DataError) as caught:
        IMAGES.select("test", ["a", "b", "x"])
    assert caught.value.problems == ["no test images of class 'b'", "no test images of class 'x'"]


@settings(max_examples=30)
@given(st.lists(samples, max_size=6), st.randoms())
def test_content_hash_depends_on_neither_order_nor_root(
    listed: list[Sample], random: Random
) -> None:
    unique = list({(s.split, s.label, s.file): s for s in listed}.values())
    here = ImageSet(Path("/a"), tuple(unique))
    random.shuffle(unique)
    there = ImageSet(Path("/b"), tuple(unique))
    assert here.content_hash == there.content_hash


@pytest.mark.parametrize(
    "change",
    [
        {"file": "train/a/2.png"},
        {"split": "test"},
        {"label": "c"},
        {"group": "patient 2"},
        {"sha256": "5" * 64},
    ],
)
def test_content_hash_depends_on_every_field(change: dict[str, str]) -> None:
    changed = ImageSet(IMAGES.root, (replace(A, **change), B, C, D))
    assert changed.content_hash != IMAGES.content_hash


def test_subset_hash_is_pinned_and_sees_the_order() -> None:
    # printf '["train/a/1.png", "train", "a", null, "1...1"]\n' | sha256sum, with 64 ones
    assert subset_hash([A]) == "1aa9857e480a9b854b6cccf0e63aeb3b2ec2b25011ad52e5c02cb4f76745baba"
    assert subset_hash([A, B]) != subset_hash([B, A])
    assert subset_hash(IMAGES.samples) == IMAGES.content_hash


def test_hash_files(tmp_path: Path) -> None:
    # SHA-256 of "abc": FIPS 180-2, appendix B.1; of nothing: well known
    (tmp_path / "abc").write_bytes(b"abc")
    (tmp_path / "empty").write_bytes(b"")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert hash_file(tmp_path / "abc") == abc
    seen: list[tuple[int, int]] = []
    paths = [tmp_path / "abc", tmp_path / "empty", tmp_path / "abc"]
    assert hash_files(paths, lambda done, total: seen.append((done, total))) == [abc, empty, abc]
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_hash_files_names_every_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        hash_files([tmp_path / "x", tmp_path / "y"])
    assert caught.value.problems == [
        f"cannot read {tmp_path / name}: No such file or directory" for name in "xy"
    ]


@settings(max_examples=30)
@given(listed=st.lists(samples, max_size=4))
def test_manifest_round_trip(
    listed: list[Sample], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("manifest") / "images.json"
    image_set = ImageSet(Path("/data/some where"), tuple(listed))
    write_manifest(image_set, path)
    assert read_manifest(path) == image_set
    assert read_manifest(path).root == Path("/data/some where")


def test_writing_a_manifest_leaves_no_other_file(tmp_path: Path) -> None:
    write_manifest(IMAGES, tmp_path / "images.json")
    write_manifest(IMAGES, tmp_path / "images.json")
    assert [file.name for file in tmp_path.iterdir()] == ["images.json"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"samples": 1}', '{"samples": [{"x": 1}]}']
)
def test_a_file_that_is_no_manifest_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "images.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"images\.json is not an image manifest"):
        read_manifest(path)


def test_a_manifest_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.json"
    write_manifest(IMAGES, path)
    document = json.loads(path.read_text())
    document["samples"][0]["label"] = "b"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="is damaged: its content hash does not fit"):
        read_manifest(path)


def test_a_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*gone\.json: No such file"):
        read_manifest(tmp_path / "gone.json")


def test_further_columns_are_part_of_a_sample_where_there_are_any(tmp_path: Path) -> None:
    known = replace(C, columns=(("sex", "f"), ("age", "")))
    images = ImageSet(Path("/data"), (A, known))
    assert images.content_hash != ImageSet(Path("/data"), (A, C)).content_hash
    write_manifest(images, tmp_path / "images.json")
    assert read_manifest(tmp_path / "images.json") == images
    document = json.loads((tmp_path / "images.json").read_text())
    document["samples"][0]["columns"][0][1] = "m"
    (tmp_path / "images.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="damaged"):
        read_manifest(tmp_path / "images.json")
