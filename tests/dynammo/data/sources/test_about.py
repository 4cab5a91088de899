from __future__ import annotations

from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from dynammo.config import load_config
from dynammo.data import DATA_SOURCES
from dynammo.data.samples import ImageSet
from dynammo.data.sources.about import about, written_sources
from dynammo.data.sources.loading import load_source
from dynammo.errors import ConfigError

ROOT = Path(__file__).parents[4]
PROTOCOLS = sorted((ROOT / "benchmarks" / "protocols").glob("*.yaml"))


@pytest.mark.parametrize("name", sorted(DATA_SOURCES))
def test_every_source_describes_itself(name: str) -> None:
    """With all that there is to say, or with its docstring alone."""
    found = about(name)
    described = hasattr(import_module(DATA_SOURCES.module(name)), "ABOUT")
    for key, value in asdict(found).items():
        if described and key not in ("options", "written"):
            assert value and value != "not stated", key
    assert found.title not in ("", "no description")
    for word in found.protocol.replace(",", " ").split():
        if word.endswith(".yaml"):
            assert any(path.name == Path(word).name for path in [*PROTOCOLS, ROOT / "params.yaml"])


def test_those_that_can_be_exported() -> None:
    found = written_sources()
    assert found == sorted(found)
    assert {"cifar100", "digits", "medmnist"} <= set(found) <= set(DATA_SOURCES)


def test_a_source_without_a_description_shows_its_docstring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    module = ModuleType("plugged_in_source")
    module.__doc__ = "Images of newts.\n\nMore."
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(DATA_SOURCES, "_targets", {"newts": "plugged_in_source:load"})
    assert about("newts").title == "Images of newts."
    assert about("newts").licence == "not stated"


def test_options_are_checked_before_the_source_is_called(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_source("skin8", tmp_path, {"splits": "lesion", "seed": 1})
    assert caught.value.problems == [
        "data.options: skin8 has no option 'seed'; known: split, per_class",
        "data.options: skin8 has no option 'splits'; known: split, per_class",
    ]
    with pytest.raises(ConfigError, match="folder has no option 'x'; it takes none"):
        load_source("folder", tmp_path, {"x": 1})
    with pytest.raises(ConfigError, match="medmnist needs sets; see: dynammo datasets medmnist"):
        load_source("medmnist", tmp_path, {"size": 28})
    with pytest.raises(ConfigError, match="unknown data source 'nothing'"):
        load_source("nothing", tmp_path)


def test_options_reach_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynammo.data.sources import digits

    def load(path: Path, side: int = 8) -> ImageSet:
        assert side == 9
        return ImageSet(path, ())

    monkeypatch.setattr(digits, "load", load)
    config = load_config(None, {"data.options": {"side": 9}, "data.path": str(tmp_path)}).data
    assert load_source(config.source, Path(config.path), config.options).root == tmp_path


# memory, classes a task (None: listed), epochs of the head: arXiv 2304.09042 and its code.
PUBLISHED = {
    "cifar100": (2000, 10, 50),
    "path16-order4": (80, None, 100),
    "path16-order5": (80, None, 100),
    "skin8": (40, 2, 100),
}


def test_the_protocols_are_those_published() -> None:
    assert {path.stem for path in PROTOCOLS} == set(PUBLISHED)
    for path in PROTOCOLS:
        config = load_config(path)
        memory, classes, epochs = PUBLISHED[path.stem]
        assert config.preset == "paper"
        assert (config.adapter.name, config.head.init) == ("conv", "new")
        assert config.memory.size == memory
        assert config.scenario.classes_per_task == classes
        assert config.scenario.class_order == "seed"
        assert config.head.epochs == epochs and config.head.learning_rate == 1e-3
        assert config.image.size == 224
        assert config.backbone.name.startswith("resnet18") and config.backbone.pretrained
        train = config.train
        assert (train.epochs, train.batch_size, train.flip) == (200, 32, True)
        assert (train.learning_rate, train.momentum, train.weight_decay) == (0.01, 0.9, 5e-4)
        assert [round(200 * at) for at in train.milestones] == [70, 130, 170]
        assert config.data.source == path.stem.partition("-")[0]
        assert config.data.repeats == ("warn" if config.data.source == "cifar100" else "refuse")
