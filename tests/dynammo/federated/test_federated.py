"""Sites without Flower: what leaves one, what is held back, and that contributions add up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dynammo.config import Config
from dynammo.errors import ConfigError, DataError
from dynammo.federated.merge import (
    SETTINGS,
    add_sites,
    check_adapter,
    check_federated,
    check_statistics,
    merge_sites,
)
from dynammo.federated.site import crossings, measure_site, read_site, train_site
from dynammo.heads.statistics import ClassStatistics, measure_classes
from dynammo.learner.settings import first_settings
from tests.flows.project import CLASSES, PARAMS, write_pictures

OWN = {key: PARAMS[key] for key in ("seed", "device", "image", "backbone", "train")}


@pytest.fixture(scope="module")
def config() -> Config:
    return first_settings("fed", None, {**OWN, **SETTINGS})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    write_pictures(folder)
    for name in CLASSES[2:]:
        for file in (folder / "train" / name).glob("*.png"):
            if name != CLASSES[2] or int(file.stem) >= 3:
                file.unlink()
        for file in (folder / "test" / name).glob("*.png"):
            file.unlink()
    for name in CLASSES[3:]:
        (folder / "train" / name).rmdir()
        (folder / "test" / name).rmdir()
    (folder / "test" / CLASSES[2]).rmdir()
    return folder


def test_a_site_sends_what_was_listed_and_holds_small_classes_back(
    site: Path, config: Config
) -> None:
    batch = read_site(site, config, 5)
    assert batch.patients == {"amber": 8, "birch": 8}
    assert set(batch.held_back) == {"coral"} and batch.held_back["coral"] < 5
    adapter = train_site(config, 1, batch)
    found = measure_site(config, adapter, batch)
    sent = [("train", name, value) for name, value in adapter.items()]
    for method, own in found.items():
        sent += [("measure", f"{method}.{name}", value) for name, value in own.state().items()]
    listed = {(row.message, row.tensor): (row.shape, row.bytes) for row in crossings(config, batch)}
    assert listed == {
        (message, name): (tuple(value.shape), value.nbytes) for message, name, value in sent
    }
    check_adapter(config, adapter)
    state = found["frozen"].state()
    size = state["means"].shape[1]
    check_statistics(config, 2, size, state)
    with pytest.raises(DataError, match="other tensors"):
        check_statistics(config, 3, size, state)
    with pytest.raises(DataError, match="not finite"):
        check_adapter(config, {name: value * torch.nan for name, value in adapter.items()})


def test_nothing_is_sent_where_no_class_has_enough_patients(site: Path, config: Config) -> None:
    with pytest.raises(DataError, match="no class has 9 patients"):
        read_site(site, config, 9)


def test_sites_add_up_to_what_one_place_would_measure() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 40, 6, generator=generator)
    labels = torch.arange(40) % 4  # classes 0 and 1 at the first site, 1, 2 and 3 at the second
    first = (labels == 0) | ((labels == 1) & (torch.arange(40) < 20))

    def at(rows: torch.Tensor, classes: list[int]) -> tuple[list[str], ClassStatistics]:
        places = torch.tensor([classes.index(label) for label in labels[rows].tolist()])
        found = measure_classes(features[:, rows], places, len(classes))
        return [str(label) for label in classes], found

    parts = [at(first, [0, 1]), at(~first, [1, 2, 3])]
    names, total = add_sites(parts)
    assert names == ["0", "1", "2", "3"]
    for got, wanted in zip(total, measure_classes(features, labels, 4), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    names, rest = add_sites(parts[1:])
    assert names == ["1", "2", "3"]
    assert all(torch.equal(got, wanted) for got, wanted in zip(rest, parts[1][1], strict=True))


def test_adapters_are_weighted_by_their_images(config: Config) -> None:
    merge = config.merge.model_copy(update={"rule": "weighted"})
    own = config.model_copy(update={"merge": merge})
    states = [{"weight": torch.zeros(2)}, {"weight": torch.ones(2)}]
    torch.testing.assert_close(merge_sites(own, states, [1, 3])["weight"], torch.full((2,), 0.75))
    torch.testing.assert_close(merge_sites(config, states, [1, 3])["weight"], torch.full((2,), 0.5))


def test_settings_that_need_the_others_images_are_refused(config: Config) -> None:
    merge = config.merge.model_copy(update={"rule": "fisher", "trust": "held_out"})
    adapter = config.adapter.model_copy(update={"init": "previous"})
    with pytest.raises(ConfigError) as error:
        check_federated(config.model_copy(update={"merge": merge, "adapter": adapter}))
    assert error.value.problems == [
        "adapter.init must be fresh",
        "merge.trust must be full: held-out images stay at their site",
        "merge.rule fisher needs fisher",
    ]
