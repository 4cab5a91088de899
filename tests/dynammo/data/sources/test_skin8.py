from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import pytest

from dynammo.data.checks import check_image_set
from dynammo.data.sources.skin8 import CLASSES, LISTS, METADATA, TRUTH, load
from dynammo.errors import ConfigError, DataError

HEAD = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK"


def is_test(lesion: str) -> bool:
    """The first 32 bits of the SHA-256, as a share of 2^32, below a sixth."""
    return int(hashlib.sha256(lesion.encode()).hexdigest()[:8], 16) / 2**32 < 1 / 6


def row(image: str, diagnosis: str) -> str:
    cells = ["1.0" if name == diagnosis else "0.0" for name in HEAD.split(",")[1:]]
    return ",".join([image, *cells])


@pytest.fixture
def isic(tmp_path: Path) -> Path:
    """Two images of each of 20 lesions a class, as the official files have them."""
    truth, metadata = [HEAD], ["image,age_approx,anatom_site_general,lesion_id,sex"]
    images = tmp_path / "ISIC_2019_Training_Input"
    images.mkdir()
    for number in range(320):
        name = f"ISIC_{number:07}" + ("_downsampled" if number % 7 == 0 else "")
        lesion = f"BCN_{number // 2:07}" if number % 10 else ""
        truth.append(row(name, CLASSES[number // 40]))
        metadata.append(f"{name},55.0,anterior torso,{lesion},female")
        (images / f"{name}.jpg").write_text(name)
    (tmp_path / TRUTH).write_text("\n".join(truth) + "\n")
    (tmp_path / METADATA).write_text("\n".join(metadata) + "\n")
    (images / "ATTRIBUTION.txt").write_text("")
    return tmp_path


def test_lesions_are_kept_whole(isic: Path) -> None:
    found = load(isic)
    check_image_set(found)
    assert found.classes == tuple(sorted(CLASSES))
    assert len(found.samples) == 320
    for sample in found.samples:
        image = Path(sample.file).stem
        number = int(image[5:12])
        assert sample.label == CLASSES[number // 40]
        assert sample.group == (f"BCN_{number // 2:07}" if number % 10 else None)
        assert (sample.split == "test") == is_test(sample.group or image)
    assert load(isic) == found


def test_other_images_do_not_move_a_lesion(isic: Path) -> None:
    before = {sample.file: sample.split for sample in load(isic, per_class=None).samples}
    lines = (isic / TRUTH).read_text().splitlines()
    (isic / TRUTH).write_text("\n".join(lines[:1] + lines[1::3]) + "\n")
    after = {sample.file: sample.split for sample in load(isic, per_class=None).samples}
    assert len(after) == 107
    assert after.items() <= before.items()


def test_a_class_is_cut_to_a_sixth_of_test_images(isic: Path) -> None:
    found = load(isic, per_class=18)
    for name in CLASSES:
        assert len(found.select("train", [name])) == 15
        assert len(found.select("test", [name])) <= 3
    everything = {sample.file: sample.split for sample in load(isic).samples}
    assert {sample.file: sample.split for sample in found.samples}.items() <= everything.items()


def published(isic: Path) -> None:
    train = [f"Data/MEL/ISIC_{n:07}{'_downsampled' if n % 7 == 0 else ''}.jpg 1" for n in (1, 2, 7)]
    (isic / LISTS["train"]).write_text("\n".join(train) + "\n")
    (isic / LISTS["test"]).write_text("Data/MEL/ISIC_0000003.jpg 1\nData/NV/ISIC_0000041.jpg 3\n\n")


def test_the_published_lists(isic: Path, caplog: pytest.LogCaptureFixture) -> None:
    published(isic)
    with caplog.at_level(logging.WARNING):
        found = load(isic, split="published")
    assert [(s.split, s.label, Path(s.file).name) for s in found.samples] == [
        ("test", "MEL", "ISIC_0000003.jpg"),
        ("test", "NV", "ISIC_0000041.jpg"),
        ("train", "MEL", "ISIC_0000001.jpg"),
        ("train", "MEL", "ISIC_0000002.jpg"),
        ("train", "MEL", "ISIC_0000007_downsampled.jpg"),
    ]
    assert {sample.group for sample in found.samples} == {None}
    # Images 2 and 3 are of lesion 1.
    assert "1 lesions have images in train and in test" in caplog.text


def test_wrong_lists_are_named_line_by_line(isic: Path) -> None:
    published(isic)
    (isic / LISTS["test"]).write_text(
        "Data/MEL/ISIC_0000001.jpg 1\nData/NV/ISIC_0000005.jpg 3\nData/NV/ISIC_9999999.jpg 3\n"
    )
    (isic / LISTS["train"]).write_text("Data/MEL/ISIC_0000001.jpg 1\n")
    with pytest.raises(DataError) as caught:
        load(isic, split="published")
    assert caught.value.problems == [
        "skin8_test_500.txt line 1: ISIC_0000001 is listed twice",
        f"skin8_test_500.txt line 2: ISIC_0000005 is listed as NV, but MEL in {TRUTH}",
        f"skin8_test_500.txt line 3: ISIC_9999999 is not in {TRUTH}",
    ]


def test_missing_lists_are_both_named(isic: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(isic, split="published")
    assert len(caught.value.problems) == 2
    assert f"cannot read {isic}/skin8_train_500.txt: No such file" in caught.value.problems[0]


def test_wrong_rows_are_named(isic: Path) -> None:
    (isic / TRUTH).write_text(
        "\n".join(
            [HEAD, "a,1.0,1.0,0,0,0,0,0,0,0", row("b", "none"), row("c", "NV"), row("c", "NV")]
        )
    )
    with pytest.raises(DataError) as caught:
        load(isic)
    first, second, third = caught.value.problems
    assert first.startswith(f"{TRUTH} line 2: expected one 1.0 among 0.0, got 1.0,1.0,0")
    assert second.startswith(f"{TRUTH} line 3: ")
    assert third == f"{TRUTH} line 5: c is listed already"


def test_images_of_unknown_diagnosis_are_left_out(isic: Path) -> None:
    with (isic / TRUTH).open("a") as file:
        file.write(row("ISIC_0099999", "UNK") + "\n")
    assert len(load(isic).samples) == 320


def test_missing_files_are_named(isic: Path) -> None:
    images = isic / "ISIC_2019_Training_Input"
    (images / "ISIC_0000001.jpg").unlink()
    (isic / "ISIC_0000002.jpg").write_text("copy")
    with pytest.raises(DataError) as caught:
        load(isic)
    twice, missing = caught.value.problems
    assert twice.startswith("image ISIC_0000002 is there twice: ")
    assert missing == f"{isic}: 1 of 320 images are missing: ISIC_0000001"
    lines = (isic / METADATA).read_text().splitlines()
    (isic / METADATA).write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match="no row for image ISIC_0000319"):
        load(isic)
    (isic / METADATA).write_text("image,sex\n")
    with pytest.raises(DataError, match="line 1: missing columns lesion_id"):
        load(isic)
    (isic / TRUTH).unlink()
    with pytest.raises(DataError, match=f"cannot read {isic}/{TRUTH}: .*isic-archive"):
        load(isic)


@pytest.mark.parametrize("options", [{"split": "patient"}, {"per_class": 5}, {"per_class": "all"}])
def test_bad_options(options: dict[str, Any], tmp_path: Path) -> None:
    (key,) = options
    with pytest.raises(ConfigError, match=rf"data\.options\.{key} must be"):
        load(tmp_path, **options)
