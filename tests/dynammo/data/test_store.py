from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynammo.data import store
from dynammo.data.formats.pictures import Form, load_image
from dynammo.data.samples import ImageSet
from dynammo.data.sources import csv_manifest, folder
from dynammo.data.store import ImageStore, build_store
from dynammo.errors import DataError

SIZE = 16


def write(root: Path, file: str, seed: int, side: int = 20) -> Path:
    """A PNG of noise; the same seed and side give the same pixels."""
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 3, 3), np.uint8)
    Image.fromarray(pixels).save(path, compress_level=seed % 9)
    return path


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    for number in range(8):
        write(
            tmp_path, f"data/{'train' if number < 6 else 'test'}/{number % 2}/{number}.png", number
        )
    return folder.load(tmp_path / "data")


def test_the_store_gives_the_pixels_that_serving_would_see(
    images: ImageSet, tmp_path: Path
) -> None:
    opened = ImageStore.open(build_store(images, SIZE, tmp_path / "store"))
    samples = images.select("train", ["1", "0"])
    batch = opened.load(samples)
    assert batch.shape == (6, 3, SIZE, SIZE)
    assert batch.dtype == torch.uint8 and batch.is_contiguous()
    for image, sample in zip(batch, samples, strict=True):
        expected = load_image(images.root / sample.file, SIZE)
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_what_is_loaded_can_be_changed_without_changing_the_store(
    images: ImageSet, tmp_path: Path
) -> None:
    opened = ImageStore.open(build_store(images, SIZE, tmp_path / "store"))
    before = opened.load(images.samples).clone()
    opened.load(images.samples).zero_()
    assert torch.equal(opened.load(images.samples), before)
    assert opened.load([]).shape == (0, 3, SIZE, SIZE)


def test_progress_and_the_files_left(images: ImageSet, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = build_store(images, SIZE, tmp_path / "s", lambda done, total: seen.append((done, total)))
    assert seen == [(number, 8) for number in range(1, 9)]
    assert sorted(tmp_path.joinpath("s").iterdir()) == [path.with_suffix(".json"), path]
    index = json.loads(path.with_suffix(".json").read_text())
    assert index["shape"] == [SIZE, SIZE, 3] and len(index["files"]) == 8


def test_copies_share_a_row(images: ImageSet, tmp_path: Path) -> None:
    copy = images.root / "train/0/copy.png"
    copy.write_bytes((images.root / "train/0/0.png").read_bytes())
    both = folder.load(images.root)
    opened = ImageStore.open(build_store(both, SIZE, tmp_path / "store"))
    assert len(opened.files) == 8
    first, second, *_ = opened.load(
        both.select("train", ["0"])[:1] + both.select("train", ["0"])[3:]
    )
    assert torch.equal(first, second)


def test_an_intact_store_is_used_again(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build_store(images, SIZE, tmp_path / "store")
    monkeypatch.setattr(store, "opened", None)  # decoding again would fail
    assert build_store(images, SIZE, tmp_path / "store") == path


def test_other_images_sizes_and_decoders_get_a_store_of_their_own(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {build_store(images, SIZE, tmp_path / "s"), build_store(images, 17, tmp_path / "s")}
    fewer = ImageSet(images.root, images.samples[1:])
    paths.add(build_store(fewer, SIZE, tmp_path / "s"))
    monkeypatch.setattr(store, "DECODER_VERSION", "other")
    paths.add(build_store(images, SIZE, tmp_path / "s"))
    assert len(paths) == 4


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def swap_rows(path: Path) -> None:
    index = json.loads(path.with_suffix(".json").read_text())
    index["files"] = index["files"][::-1]
    path.with_suffix(".json").write_text(json.dumps(index))


def pickle_array(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        flip_a_bit,
        swap_rows,
        pickle_array,
        lambda path: path.write_bytes(b""),
        lambda path: np.save(path, np.zeros((8, 4, 4, 3), np.uint8)),
        lambda path: path.unlink(),
        lambda path: path.with_suffix(".json").write_text("{"),
        lambda path: path.with_suffix(".json").write_text("[]"),
        lambda path: path.with_suffix(".json").unlink(),
    ],
)
def test_a_damaged_store_is_made_anew(
    damage: Callable[[Path], object], images: ImageSet, tmp_path: Path
) -> None:
    path = build_store(images, SIZE, tmp_path / "store")
    content, index = path.read_bytes(), path.with_suffix(".json").read_bytes()
    damage(path)
    if damage is not swap_rows:  # only the image set can tell
        with pytest.raises(DataError, match=path.name):
            ImageStore.open(path)
    assert build_store(images, SIZE, tmp_path / "store") == path
    assert path.read_bytes() == content
    assert path.with_suffix(".json").read_bytes() == index


def test_all_bad_files_are_reported_at_once_and_nothing_is_left(
    images: ImageSet, tmp_path: Path
) -> None:
    cut(images.root / "train/0/2.png")
    (images.root / "train/1/1.png").write_text("no picture")
    listed = folder.load(images.root)
    write(images.root, "train/1/3.png", seed=99)
    (images.root / "test/1/7.png").unlink()
    with pytest.raises(DataError) as caught:
        build_store(listed, SIZE, tmp_path / "store")
    problems = sorted(caught.value.problems)
    assert len(problems) == 4
    assert problems[0] == "cannot read test/1/7.png: No such file or directory"
    assert problems[1].startswith("cannot read train/0/2.png: ")
    assert problems[2].startswith("cannot read train/1/1.png: not a readable PNG")
    assert problems[3].startswith("train/1/3.png has changed: SHA-256 ")
    assert list((tmp_path / "store").iterdir()) == []


def test_the_same_picture_in_train_and_test_or_under_two_classes_is_refused(
    images: ImageSet, tmp_path: Path
) -> None:
    def resave(file: str, copy: str) -> None:
        Image.open(images.root / file).save(images.root / copy)  # other bytes, same pixels

    resave("train/0/2.png", "test/1/leak.bmp")
    resave("train/0/4.png", "train/1/twice.tif")
    resave("train/0/0.png", "train/0/harmless.ppm")
    with pytest.raises(DataError) as caught:
        build_store(folder.load(images.root), SIZE, tmp_path / "store")
    assert sorted(caught.value.problems) == [
        "the same picture is in train and in test: train/0/2.png and test/1/leak.bmp",
        "the same picture is under two classes: train/0/4.png ('0') and train/1/twice.tif ('1')",
    ]


def test_pictures_that_are_alike_only_after_resizing_pass(images: ImageSet, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(images.root / "train/0/small.png")
    Image.new("RGB", (9, 9), "red").save(images.root / "test/0/large.png")
    build_store(folder.load(images.root), SIZE, tmp_path / "store")


def test_samples_that_are_not_in_the_store_are_named(images: ImageSet, tmp_path: Path) -> None:
    fewer = ImageSet(images.root, images.samples[2:])
    opened = ImageStore.open(build_store(fewer, SIZE, tmp_path / "store"))
    with pytest.raises(DataError) as caught:
        opened.load(images.samples)
    files = [sample.file for sample in images.samples[:2]]
    assert caught.value.problems == [f"{file} is not in the image store" for file in files]


def test_an_empty_image_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="/data: no images"):
        build_store(ImageSet(Path("/data"), ()), SIZE, tmp_path)


def test_repeated_pictures_may_be_kept(
    images: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.open(images.root / "train/0/2.png").save(images.root / "test/1/leak.bmp")
    listed = folder.load(images.root)
    with caplog.at_level(logging.WARNING):
        path = build_store(listed, SIZE, tmp_path / "store", repeated="warn")
    assert "1 repeated pictures are kept" in caplog.text
    assert ImageStore.open(path).load(listed.samples).shape == (9, 3, SIZE, SIZE)


def test_volumes_of_very_different_spacing_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nibabel = pytest.importorskip("nibabel")
    random = np.random.default_rng(0)

    def volume(name: str, spacing: float) -> None:
        values = random.integers(0, 200, (16, 16, 4)).astype(np.int16)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, spacing, 1])), tmp_path / name)

    names = [f"{split}/{own}/1.nii.gz" for split in ("train", "test") for own in "ab"]
    for name, spacing in zip(names, (1.0, 3.0, 2.0, 1.0), strict=True):
        volume(name, spacing)
    build_store(folder.load(tmp_path, volumes=True), Form(SIZE, 4), tmp_path / "s")
    assert caplog.text == ""
    volume(names[1], 3.5)
    build_store(folder.load(tmp_path, volumes=True), Form(SIZE, 4), tmp_path / "s")
    line = "slices are 3.5 mm apart in train/b/1.nii.gz and 1 mm in t"
    assert line in caplog.text and "more than 3 times as far" in caplog.text


def test_volumes_of_files_and_of_folders(tmp_path: Path) -> None:
    values = np.arange(4, dtype=np.uint8)[:, None, None] * np.ones((1, SIZE, SIZE), np.uint8)
    (tmp_path / "series").mkdir()
    for number, own in enumerate(values + 40):
        Image.fromarray(own).save(tmp_path / "series" / f"{number}.png")
    np.save(tmp_path / "one.npy", values)
    (tmp_path / "manifest.csv").write_text("file,split,class\none.npy,train,a\nseries,train,b")
    volumes, form = csv_manifest.load(tmp_path), Form(SIZE, slices=2)
    store = ImageStore.open(build_store(volumes, form, tmp_path / "s"))
    strips = store.load(volumes.samples)
    assert strips.shape == (2, 3, 2 * SIZE, SIZE)
    assert strips[:, 0, ::SIZE, 0].tolist() == [[0, 2], [40, 42]]  # 0.5, 2.5 to even numbers
    assert build_store(volumes, form, tmp_path / "s") != build_store(
        volumes, Form(SIZE, slices=3), tmp_path / "s"
    )
    with pytest.raises(DataError) as caught:
        build_store(volumes, SIZE, tmp_path / "s")
    assert "series is a folder; expected a picture (image.slices 1)" in caught.value.problems
    (tmp_path / "series" / "9.png").write_bytes(b"more")
    with pytest.raises(DataError, match="series has changed"):
        build_store(volumes, Form(SIZE, slices=4), tmp_path / "s")
