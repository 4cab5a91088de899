from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits

from dynammo.data.formats.pictures import Form, Pixels
from dynammo.data.near import MOST_BITS, mark, near_kept
from dynammo.data.sources import folder
from dynammo.data.store import build_store
from dynammo.errors import DataError


def scene(seed: int, side: int = 96) -> Image.Image:
    """Soft blobs, as photographs and tissue have."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    large = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
    return large.filter(ImageFilter.GaussianBlur(1))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(8):
        path = tmp_path / "data" / ("train" if number < 6 else "test") / str(number % 2)
        path.mkdir(parents=True, exist_ok=True)
        scene(number).save(path / f"{number}.png")
    return tmp_path / "data"


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content)


ALTERED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "encoded again": lambda image: as_jpeg(image, 85),
    "half the size": lambda image: image.resize((48, 48), Image.Resampling.LANCZOS),
    "double the size": lambda image: image.resize((192, 192), Image.Resampling.BICUBIC),
}


@pytest.mark.parametrize("how", ALTERED)
def test_an_altered_training_picture_in_test_is_refused(
    how: str, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ALTERED[how](scene(2)).save(root / "test/1/leak.png")
    with pytest.raises(DataError) as caught:
        build_store(folder.load(root), 32, root.parent / "store")
    line = "nearly the same picture is in train and in test: train/0/2.png and test/1/leak.png"
    assert caught.value.problems == [line]
    with caplog.at_level(logging.WARNING):
        build_store(folder.load(root), 32, root.parent / "store", repeated="warn")
    assert line in caplog.text


def test_equal_pixels_are_told_once(root: Path) -> None:
    scene(2).save(root / "test/1/leak.bmp")
    with pytest.raises(DataError) as caught:
        build_store(folder.load(root), 32, root.parent / "store")
    assert caught.value.problems == [
        "the same picture is in train and in test: train/0/2.png and test/1/leak.bmp"
    ]


def test_other_colours_are_another_picture(root: Path) -> None:
    """Of the same brightness everywhere, which is all that a hash sees."""
    grey = np.asarray(scene(2).convert("L"), dtype=np.float32)
    tinted = np.stack([grey * 1.6, grey * 0.7, grey], axis=2).clip(0, 255).astype(np.uint8)
    Image.fromarray(tinted).save(root / "test/1/tinted.png")
    build_store(folder.load(root), 32, root.parent / "store")


def test_pictures_that_show_nothing_have_no_mark() -> None:
    for value in (0, 128, 255):
        assert mark(np.full((20, 30, 3), value, np.uint8)) is None
    assert mark(np.asarray(scene(0))) is not None


def test_no_digit_is_taken_for_another() -> None:
    """They are the most alike of the sets that benchmarks/measurements/data.md names,
    and come with scikit-learn."""
    images: list[Pixels] = [
        (image * 255 / 16).astype(np.uint8)[:, :, None].repeat(3, axis=2)
        for image in load_digits().images[::2]
    ]
    marks = np.stack([found for image in images if (found := mark(image)) is not None])
    assert len(marks) == len(images)
    for number, own in enumerate(marks[:-1], start=1):
        assert np.bitwise_count(marks[number:] ^ own).sum(axis=1).min() > 2 * MOST_BITS


def scenes(first: int, side: int = 64, count: int = 6) -> list[Image.Image]:
    """A volume whose first slice shows nothing."""
    return [Image.new("RGB", (side, side)), *(scene(first + own, side) for own in range(count))]


VOLUMES: dict[str, Callable[[list[Image.Image]], list[Image.Image]]] = {
    "encoded again": lambda own: [as_jpeg(page, 85).convert("RGB") for page in own],
    "double the size": lambda own: [page.resize((128, 128)) for page in own],
}


@pytest.mark.parametrize("how", VOLUMES)
def test_an_altered_training_volume_in_test_is_refused(how: str, tmp_path: Path) -> None:
    def write(file: str, pages: list[Image.Image]) -> None:
        path = tmp_path / "data" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        pages[0].save(path, save_all=True, append_images=pages[1:])

    for number in range(8):
        split = "train" if number < 6 else "test"
        write(f"{split}/{number % 2}/{number}.tif", scenes(10 * number))
    build_store(folder.load(tmp_path / "data", True), Form(64, slices=7), tmp_path / "store")
    # Half of another volume is no copy of it.
    write("test/1/half.tif", scenes(20, count=3) + scenes(90, count=3)[1:])
    build_store(folder.load(tmp_path / "data", True), Form(64, slices=7), tmp_path / "store")
    write("test/1/leak.tif", VOLUMES[how](scenes(20)))
    with pytest.raises(DataError) as caught:
        build_store(folder.load(tmp_path / "data", True), Form(64, slices=7), tmp_path / "store")
    assert caught.value.problems == [
        "nearly the same picture is in train and in test: train/0/2.tif and test/1/leak.tif"
    ]


def test_slices_that_show_nothing_make_no_volumes_alike() -> None:
    """All but one are black: the one that shows something has to be the same."""
    blank = np.zeros((5 * 64, 64, 3), np.uint8)
    one, other = (np.vstack([blank, np.asarray(scene(own, 64))]) for own in (1, 2))
    early = np.vstack([np.asarray(scene(1, 64)), blank])
    assert mark(blank, 5) is None
    assert near_kept(np.stack([one, other, early]), one[None]) == [0]


def test_a_kept_picture_is_known_again_at_the_size_at_which_it_is_kept() -> None:
    kept = np.stack([np.asarray(scene(number, 64)) for number in range(4)])
    again = as_jpeg(scene(2, 256), 60).resize((64, 64))
    new = np.stack([np.asarray(scene(9, 64)), np.asarray(again), np.asarray(scene(10, 64))])
    assert near_kept(new, kept) == [1]
    assert near_kept(new, kept[:0]) == []
    assert near_kept(np.zeros((2, 64, 64, 3), np.uint8), kept) == []  # shows nothing
