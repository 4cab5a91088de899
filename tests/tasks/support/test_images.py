"""The subset of the images that a step takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynammo.data.marks import keyed
from dynammo.data.samples import ImageSet, subset_hash, write_manifest
from dynammo.data.sources import folder
from dynammo.data.store import build_store
from dynammo.errors import DataError
from tasks.support.images import Images, remembered, targets_of
from tasks.support.workspace import Classes, Context, Kept, provenance

# Each picture is of one grey value: class number times ten, plus its own number.
CLASSES = ("amber", "birch", "coral")


def picture(file: Path, grey: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 20), grey, dtype=np.uint8)).save(file)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    for index, name in enumerate(CLASSES, start=1):
        for number in range(4):
            split = "train" if number < 3 else "test"
            picture(tmp_path / "pictures" / split / name / f"{number}.png", 10 * index + number)
    listed = folder.load(tmp_path / "pictures")
    write_manifest(listed, tmp_path / "manifest.json")
    store = build_store(listed, 16, tmp_path / "store")
    return Images.of(Context(manifest=str(tmp_path / "manifest.json"), images=str(store)))


def classes(images: Images, split: str, names: list[str]) -> Classes:
    return {"names": names, "hash": subset_hash(images.image_set.select(split, names))}


def greys(pixels: torch.Tensor) -> list[int]:
    assert pixels.shape[1:] == (3, 16, 16) and pixels.dtype == torch.uint8
    assert (pixels == pixels[:, :1, :1, :1]).all()
    values: list[int] = pixels[:, 0, 0, 0].tolist()
    return values


def files(images: Images, values: Iterable[int]) -> list[str]:
    """SHA-256 of the files of the pictures with these grey values."""
    by_place = {
        (sample.label, int(Path(sample.file).stem)): sample.sha256
        for sample in images.image_set.samples
    }
    return [by_place[CLASSES[value // 10 - 1], value % 10] for value in values]


def test_a_split_of_some_classes_comes_class_by_class(images: Images) -> None:
    names = ["coral", "amber"]
    pixels, hashes = images.load("train", classes(images, "train", names))
    assert greys(pixels) == [30, 31, 32, 10, 11, 12]
    assert hashes == files(images, [30, 31, 32, 10, 11, 12])
    assert images.labels("train", names).tolist() == [0, 0, 0, 1, 1, 1]
    assert images.labels("test", list(CLASSES)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("split", "names"), [("test", ["amber"]), ("train", ["birch"])])
def test_other_images_than_the_hash_names_are_refused(
    images: Images, split: str, names: list[str]
) -> None:
    given: Classes = {"names": ["amber"], "hash": classes(images, split, names)["hash"]}
    with pytest.raises(DataError, match=r"train images of \['amber'\] changed during the run"):
        images.load("train", given)


def test_a_batch_may_have_test_images_of_some_of_its_classes_only(images: Images) -> None:
    known = [s for s in images.image_set.samples if (s.split, s.label) != ("test", "birch")]
    images = Images(ImageSet(images.image_set.root, tuple(known)), images.store)
    assert images.labels("test", list(CLASSES)).tolist() == [0, 2]
    with pytest.raises(DataError, match="birch"):
        images.labels("train", [*CLASSES, "no birch"])


def test_images_and_groups_are_named_to_whoever_has_the_key(images: Images) -> None:
    grouped = [
        replace(sample, group="patient" if sample.file.endswith("0.png") else None)
        for sample in images.image_set.samples
    ]
    images = Images(ImageSet(images.image_set.root, tuple(grouped)), images.store)
    (mine, groups), (others, _) = (
        images.marks("train", ["coral"], key) for key in ("01" * 32, "02" * 32)
    )
    assert mine.shape == groups.shape == (3, 32)
    expected = [keyed("01" * 32, sha256) for sha256 in files(images, [30, 31, 32])]
    assert [bytes(row.tolist()).hex() for row in mine] == expected
    assert not (mine == others).all(1).any()
    assert bytes(groups[0].tolist()).hex() == keyed("01" * 32, "patient")
    assert not groups[1:].any()


def test_exemplars_come_in_order_of_arrival(images: Images, tmp_path: Path) -> None:
    context = Context(store=str(tmp_path / "kept"))
    pixels, _ = images.load("train", classes(images, "train", ["coral", "amber"]))
    kept = {"images": pixels[[2, 0, 4]], "counts": torch.tensor([2, 0, 1])}
    memory = context.checkpoints.save("exemplars", kept, provenance())
    pixels, labels = remembered(memory, context)
    assert greys(pixels) == [32, 30, 11]
    assert labels.tolist() == [0, 0, 2]


def test_kept_images_belong_to_classes_in_order_of_arrival(tmp_path: Path) -> None:
    context = Context(store=str(tmp_path / "kept"))

    def kept(names: list[str], labels: list[int]) -> Kept:
        saved = {"labels": torch.tensor(labels)}
        ref = context.checkpoints.save("test-labels", saved, provenance())
        return {"names": names, "labels": ref, "images": None, "features": {}}

    tests = [kept(["coral", "amber"], [0, 0, 1]), kept(["birch"], [0, 0])]
    targets = targets_of(tests, ["amber", "birch", "coral"], context)
    assert [target.tolist() for target in targets] == [[2, 2, 0], [1, 1]]
