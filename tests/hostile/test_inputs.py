"""Images, folders and settings that would lead to silently wrong answers, or to none for ever."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynammo.config import TrainConfig, load_config, parse_overrides
from dynammo.data.formats.pictures import decode
from dynammo.data.sources.folder import image_files, load
from dynammo.errors import ConfigError, DataError, DynammoError
from dynammo.evaluation.grid import load_grid
from dynammo.training.loop import fit
from tests.scans import encode

pytestmark = pytest.mark.timeout(30)  # what hangs has failed
PIXELS = np.arange(16, dtype=np.uint16).reshape(4, 4)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"RescaleSlope": "nan", "RescaleIntercept": 0}, "RescaleSlope"),
        ({"RescaleSlope": "inf", "RescaleIntercept": 0}, "RescaleSlope"),
        ({"RescaleSlope": 1, "RescaleIntercept": "nan"}, "RescaleSlope"),
        ({"RescaleSlope": 1, "RescaleIntercept": "-inf"}, "RescaleSlope"),
        ({"RescaleSlope": "1e308", "RescaleIntercept": 0}, "RescaleSlope"),
        ({"RescaleSlope": "1e304", "RescaleIntercept": 0}, "RescaleSlope"),
        ({"WindowCenter": "nan", "WindowWidth": 5}, "WindowCenter"),
        ({"WindowCenter": 5, "WindowWidth": "nan"}, "WindowWidth"),
        ({"WindowCenter": 5, "WindowWidth": "inf"}, "WindowWidth"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # pydicom finds such values odd, too
def test_a_dicom_file_that_would_be_shown_black(elements: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"cannot read .*{message}.* not finite numbers"):
        decode(encode(PIXELS, **elements))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for name in ("a", "b"):
            file = tmp_path / split / name / "deep" / "1.png"
            file.parent.mkdir(parents=True)
            file.write_bytes(f"{split}{name}".encode())
    return tmp_path


def test_loops_of_links_count_no_image_twice(images: Path) -> None:
    before = [sample.file for sample in load(images).samples]
    a = images / "train" / "a"
    (a / "loop").symlink_to(a)
    (a / "deep" / "up").symlink_to(a)
    (a / "deep" / "here").symlink_to(a / "deep")
    (a / "again").symlink_to(a / "deep")
    (a / "again.png").symlink_to(a / "deep" / "1.png")
    assert [sample.file for sample in load(images).samples] == before
    assert len(image_files(a)) == 1


def test_what_is_no_regular_file_is_refused(images: Path) -> None:
    os.mkfifo(images / "train/a/pipe.png")
    (images / "train/b/zero.png").symlink_to("/dev/zero")
    with pytest.raises(DataError) as caught:
        load(images)
    assert sorted(caught.value.problems) == [
        f"{images}/train/a/pipe.png: no regular file",
        f"{images}/train/b/zero.png: no regular file",
    ]
    with pytest.raises(DataError, match="no regular file"):
        image_files(images / "train")


def test_a_name_that_is_not_utf8_is_refused_before_anything_is_learnt(images: Path) -> None:
    Path(os.fsdecode(os.fsencode(images) + b"/train/a/caf\xe9.png")).write_bytes(b"x")
    with pytest.raises(DataError, match=r"caf\\udce9\.png': the name is not UTF-8") as caught:
        load(images)
    str(caught.value).encode()


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_training_that_ends_far_above_its_start_is_refused(start: float) -> None:
    """Finite all along: a step past the minimum of x^2 doubles the distance to it."""
    weight = nn.Parameter(torch.tensor([1.0]))

    def loss(batch: Tensor, _view: Tensor) -> tuple[Tensor, int]:
        return start + (weight**2).sum(), 0

    config = TrainConfig(
        learning_rate=1.5, epochs=10, batch_size=4, momentum=0, weight_decay=0, milestones=[]
    )
    with pytest.raises(DynammoError, match=r"^the loss is .* before training, in epoch 10: train"):
        fit([weight], loss, 4, config, seed=0)
    calm = config.model_copy(update={"learning_rate": 0.1})
    assert fit([weight], loss, 4, calm, seed=0)[-1].loss > 0


BOMB = "\n".join(
    ["data:", "  options:", "    a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"    a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train:\n  epochs: 3\n  epochs: 30\n", r"'epochs' is given twice.* line 3"),
        (b"seed: 1\nseed: 2\n", "'seed' is given twice"),
        (b"data:\n  options: {a: {b: 1, b: 2}}\n", "'b' is given twice"),
        (BOMB.encode(), "more than 100,000 values"),
        (b"data: &d\n  options: *d\n", "contains itself"),
        (b"data:\n  options: &o {a: [*o]}\n", "contains itself"),
        (b"&a [*a]", "contains itself"),
        (b"data: {options: {a: " + b"[" * 50_000 + b"]" * 50_000 + b"}}", "nested too deeply"),
        ("data:\n  path: café\n".encode("latin-1"), "is not UTF-8"),
        (b"\xff\xfes\x00e\x00e\x00d\x00", "is not UTF-8"),
        (b"data: {path: 2024-99-99}", "not valid YAML"),
        (b"seed: \x00", "not valid YAML"),
        (b"seed: !!python/object/apply:os.system [id]", "not valid YAML"),
        (b"train: {learning_rate: 1.0e+300}", r"train\.learning_rate: .* less than or equal"),
        (b"train: {batch_size: 1000000000000000000000000}", r"train\.batch_size: .* less than"),
    ],
    ids=range(15),
)
def test_settings_that_are_not_what_they_seem(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(file)
    assert len(caught.value.problems) == 1
    if "learning_rate" not in message and "batch_size" not in message:
        with pytest.raises(ConfigError, match=message):
            load_grid(file)


@pytest.mark.parametrize("value", ["{b: 1, b: 2}", "&a [*a]", "[" * 50_000])
def test_overrides_that_are_not_what_they_seem(value: str) -> None:
    with pytest.raises(ConfigError, match="is not a YAML value"):
        parse_overrides([f"data.options={value}"])


def test_an_alias_that_is_used_plainly_is_fine(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("data: {options: {a: &a {x: 1}, b: *a, c: {<<: *a, y: 2}}}")
    assert load_config(file).data.options["c"] == {"x": 1, "y": 2}
