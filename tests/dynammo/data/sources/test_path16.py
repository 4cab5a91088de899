from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dynammo.config import MemoryConfig, load_config
from dynammo.data.checks import check_image_set
from dynammo.data.samples import ImageSet
from dynammo.data.scenario import build_scenario
from dynammo.data.sources.path16 import PARTS, load
from dynammo.errors import DataError

ROOT = Path(__file__).parents[4]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """One image of each class and split; all parts call their classes 0, 1, ..."""
    for part, count in PARTS.items():
        for split in ("train", "test"):
            for number in range(count):
                file = tmp_path / part / split / str(number) / "0.png"
                file.parent.mkdir(parents=True)
                file.write_text(f"{part} {split} {number}")
    return tmp_path


def tasks(found: ImageSet, order: int) -> list[tuple[str, ...]]:
    config = load_config(ROOT / "benchmarks" / "protocols" / f"path16-order{order}.yaml")
    scenario = build_scenario(found, config.scenario, config.memory, config.seed)
    return [task.classes for task in scenario]


def test_classes_have_the_name_of_their_part(images: Path) -> None:
    found = load(images)
    check_image_set(found)
    assert len(found.classes) == 16
    assert found.select("test", ["TCGA_STD.3"])[0].file == "TCGA_STD/test/3/0.png"


def test_the_published_orders(images: Path) -> None:
    found = load(images)
    # As in the authors' code, order 4 and order 5.
    fourth = [names[0].partition(".")[0] for names in tasks(found, 4)]
    assert fourth == [
        "colon",
        "lung",
        "Patch_Camelyon",
        "TCGA_STD",
        "oral_cancer",
        "MHIST",
        "breast_cancer",
    ]
    fifth = tasks(found, 5)
    assert [len(names) for names in fifth] == [2, 2, 2, 2, 4, 2, 2]
    assert fifth[0] == ("MHIST.0", "MHIST.1")
    assert fifth[4] == ("TCGA_STD.0", "TCGA_STD.1", "TCGA_STD.2", "TCGA_STD.3")
    assert {name for names in fifth for name in names} == set(found.classes)


def test_all_problems_are_reported_at_once(images: Path) -> None:
    shutil.rmtree(images / "lung")
    shutil.rmtree(images / "MHIST" / "test" / "1")
    for split in ("train", "test"):
        shutil.rmtree(images / "TCGA_STD" / split / "2")
    with pytest.raises(DataError) as caught:
        load(images)
    assert caught.value.problems == [
        "MHIST: class '1' is in train but not in test",
        f"{images}/TCGA_STD: 3 classes (0, 1, 3); expected 4",
        f"{images}/lung: no such folder; expected lung/train/<class>/<image>",
    ]


def test_a_memory_too_small_is_counted_in_classes(images: Path) -> None:
    config = load_config(ROOT / "benchmarks" / "protocols" / "path16-order4.yaml")
    with pytest.raises(DataError, match="each of 16 classes"):
        build_scenario(load(images), config.scenario, MemoryConfig(size=15), 1)
