"""Sites without Flower: what leaves one, what is held back, and that contributions add up."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynammo.config import ClinicalConfig, Config
from dynammo.data.samples import ImageSet, Sample
from dynammo.errors import CheckpointError, ConfigError, DataError
from dynammo.federated.columns import packed
from dynammo.federated.judge import Counts, Model, check_counts, patients_tested
from dynammo.federated.merge import (
    SETTINGS,
    add_sites,
    check_adapter,
    check_federated,
    check_statistics,
    check_temperature,
    head_of,
    merge_sites,
    temperature_of,
)
from dynammo.federated.noise import noise_scale, noisy_classes
from dynammo.federated.site import (
    adapted_network,
    columns_sent,
    crossings,
    load_pixels,
    measure_site,
    read_site,
    train_site,
)
from dynammo.heads.discriminant import calibration_temperature
from dynammo.heads.scaling import power_normalise
from dynammo.heads.statistics import ClassStatistics, measure_classes
from dynammo.learner.settings import first_settings
from dynammo.network.features import augmented_views
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
        state = own.statistics.state()
        sent += [("measure", f"{method}.{name}", value) for name, value in state.items()]
    listed = {(row.message, row.tensor): (row.shape, row.bytes) for row in crossings(config, batch)}
    assert listed == {
        (message, name): (tuple(value.shape), value.nbytes) for message, name, value in sent
    }
    check_adapter(config, adapter)
    state = found["frozen"].statistics.state()
    size = state["means"].shape[1]
    check_statistics(config, 2, size, state)
    with pytest.raises(DataError, match="other tensors"):
        check_statistics(config, 3, size, state)
    with pytest.raises(DataError, match="not finite"):
        check_adapter(config, {name: value * torch.nan for name, value in adapter.items()})


def test_the_columns_of_a_listing_are_listed_and_counted(site: Path, config: Config) -> None:
    """Training images only, of classes that cross; not with noise; without a column that is not
    there, nor any of a folder.
    """
    rows = [
        (file.relative_to(site).as_posix(), *file.relative_to(site).parts[:2])
        for file in sorted(site.glob("*/*/*.png"))
    ]
    assert {label for _, _, label in rows} == {"amber", "birch", "coral"}
    listing = site / "listed.csv"
    lines = [
        f"{file},{split},{label},{'f' if split == 'train' else 'test'},{40 + n % 2}"
        for n, (file, split, label) in enumerate(rows)
    ]
    listing.write_text("\n".join(["file,split,class,sex,age", *lines]))
    asked = ClinicalConfig(categories=["sex", "smoker"], numbers=["age"])
    own = config.model_copy(update={"clinical": asked})
    batch = read_site(listing, own, 5)
    assert batch.absent == ["smoker"]
    counts = columns_sent(batch, math.inf)
    assert counts is not None
    assert counts["categories"] == {"sex": {"f": [8, 8]}}
    assert counts["numbers"] == {"age": [[8, 8], [324, 324], [13124, 13124]]}
    listed = {row.tensor: row for row in crossings(own, batch) if "columns" in row.tensor}
    tables, _ = packed(counts)
    assert {name: (row.message, row.shape, row.bytes) for name, row in listed.items()} == {
        f"columns.{name}": ("measure", tuple(value.shape), value.nbytes)
        for name, value in tables.items()
    }
    assert {row.fewest for row in listed.values()} == {8}
    assert columns_sent(batch, 3.0) is None
    assert not [row for row in crossings(own, batch, 3.0) if "columns" in row.tensor]
    folder = read_site(site, own, 5)
    assert folder.absent == asked.names and columns_sent(folder, math.inf) is None
    listing.write_text(
        "\n".join(["file,split,class,sex,age", *lines, ""]).replace(",41\n", ",old\n")
    )
    with pytest.raises(DataError, match="age: 'old' is no number"):
        read_site(listing, own, 5)
    listing.unlink()


def test_a_temperature_is_measured_where_it_can_be(tmp_path: Path, config: Config) -> None:
    """On every fifth image of a class, among the site's own classes; not under noise."""
    noise = np.random.default_rng(0)
    for name in ("a", "b"):  # which cannot be told apart, and seem to be
        (tmp_path / name).mkdir()
        for number in range(10):  # two of them are test images
            picture = Image.fromarray(noise.integers(0, 256, (48, 48, 3), np.uint8))
            picture.save(tmp_path / name / f"{number}.png")
    batch = read_site(tmp_path, config, 5)
    network = config.model_copy(update={"methods": ["frozen"]})
    found = measure_site(network, {}, batch)["frozen"].temperature
    pixels, labels = load_pixels(config, batch.images, batch.training), torch.arange(16) // 8
    views = augmented_views(
        adapted_network(config, None), pixels, config.head.flip, config.head.turns
    )
    features = power_normalise(views, config.head.power)
    whole = measure_classes(features, labels, 2, config.head.pooling)
    assert found == calibration_temperature(whole, features, labels, config.head)
    assert found > 1 == measure_site(network, {}, batch, 3.0)["frozen"].temperature
    # Each weighs as its images; who has measured none does not count.
    assert temperature_of([(2.0, 30), (16.0, 10), (1.0, 99)]) == pytest.approx(2**1.75)
    assert temperature_of([(1.0, 5)]) == 1 and check_temperature(2.5) == 2.5
    for wrong in (0.5, 404.0, math.nan):
        with pytest.raises(DataError, match="temperature"):
            check_temperature(wrong)


def test_a_temperature_cools_the_head_and_changes_no_answer(config: Config) -> None:
    random = torch.Generator().manual_seed(0)
    features, labels = torch.randn(1, 40, 6, generator=random), torch.arange(40) % 4
    parts = [(["a", "b", "c", "d"], measure_classes(features, labels, 4, config.head.pooling))]
    _, _, plain = head_of(config, parts)
    _, _, cooled = head_of(config, parts, 4.0)
    assert torch.equal(plain["power"], cooled["power"])
    for name in ("weight", "bias"):
        torch.testing.assert_close(cooled[name], plain[name] / 4)


def test_a_further_round_of_training_starts_at_the_merged_adapter(
    site: Path, config: Config
) -> None:
    batch = read_site(site, config, 5)
    first = train_site(config, 1, batch)
    train = config.train.model_copy(update={"learning_rate": 1e-30, "weight_decay": 0.0})
    still = config.model_copy(update={"train": train})
    # Where training does not move, its end is its start, whatever the number of the site.
    second = train_site(still, 2, batch, 2, first)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-20)
    fresh = train_site(still, 1, batch)
    assert any(not torch.equal(fresh[name], value) for name, value in first.items())
    # The order of the images is another one in each round.
    again = train_site(config, 1, batch, 2, fresh)
    assert any(not torch.equal(again[name], value) for name, value in first.items())
    with pytest.raises(CheckpointError, match="does not fit"):
        train_site(config, 1, batch, 2, {"weight": torch.zeros(1)})


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


def test_noise_is_as_large_as_epsilon_asks_for() -> None:
    assert noise_scale(1.0, 1.0, 1e-5) == pytest.approx(3.7306, abs=1e-4)  # Balle and Wang's code
    assert noise_scale(1.0, 2.0, 1e-5) == pytest.approx(2 * 3.7306, abs=2e-4)
    assert noise_scale(10.0, 1.0) < noise_scale(3.0, 1.0) and noise_scale(math.inf, 1.0) == 0
    with pytest.raises(ValueError, match="above 0"):
        noise_scale(0.0, 1.0)


def unit(*shape: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    features = torch.randn(*shape, generator=random, dtype=torch.float64)
    return torch.nn.functional.normalize(features, dim=-1)


def test_one_patient_moves_the_statistics_by_no_more_than_is_assumed() -> None:
    features, labels = unit(2, 30, 4), torch.arange(30) % 3
    random = np.random.default_rng(0)

    def sums(count: int, patients: list[str]) -> torch.Tensor:
        """Counts, sums and second moments, from the statistics without noise."""
        found = noisy_classes(
            features[:, :count], labels[:count], patients[:count], 3, "samples", 0.0, random
        )
        totals = found.means * found.counts.unsqueeze(1)
        moments = found.scatter + found.means.T @ totals
        return torch.cat([found.counts, totals.flatten(), moments.flatten()])

    alone = [str(number) for number in range(30)]
    one = (sums(30, alone) - sums(29, alone)).norm()
    assert 1 < one <= math.sqrt(3) + 1e-9
    together = [*alone[:20], *["same"] * 10]  # ten images, of three classes
    several = sums(30, together) - sums(20, together)
    assert 0 < several.norm() <= math.sqrt(3) + 1e-9
    assert several[:3].sum() == pytest.approx(1)  # and still counts as one sample


def test_without_noise_the_statistics_are_those_of_one_image_a_patient() -> None:
    features, labels = unit(2, 12, 4), torch.arange(12) % 2
    random, names = np.random.default_rng(0), [str(number) for number in range(12)]
    for pooling in ("samples", "classes"):
        found = noisy_classes(features, labels, names, 2, pooling, 0.0, random)
        plain = measure_classes(features, labels, 2, pooling)  # each view is a sample there
        torch.testing.assert_close(found.means, plain.means)
        torch.testing.assert_close(found.scatter, plain.scatter / 2)
        torch.testing.assert_close(found.counts, plain.counts / 2)


def test_noise_has_the_size_that_it_is_said_to_have() -> None:
    features, labels = unit(1, 400, 3), torch.zeros(400).long()
    random, names = np.random.default_rng(0), [str(number) for number in range(400)]
    counts, means = [], []
    for _ in range(300):
        found = noisy_classes(features, labels, names, 1, "samples", 5.0, random)
        counts.append(float(found.counts))
        means.append(found.means[0] * found.counts)
        assert bool((torch.linalg.eigvalsh(found.scatter) > -1e-9).all())
    assert np.std(counts) == pytest.approx(5, rel=0.15)
    assert torch.stack(means).std(0).mean().item() == pytest.approx(5, rel=0.15)


def test_counts_that_cannot_be_are_refused() -> None:
    state = {"weight": torch.zeros(1)}
    new, old = Model(["a", "b"], state, state), Model(["a"], state, state)
    confusion = torch.tensor([[4, 1], [0, 6]])
    paired = torch.zeros(2, 2, 2).long()
    paired[0] = torch.tensor([[1, 1], [0, 3]])
    sent = {"confusion": confusion, "paired-3": paired}
    found = check_counts(sent, new, {3: old}, ["a", "b"], 5)
    total = Counts.total([found, found])
    assert total is not None
    assert total.confusion.tolist() == [[8, 2], [0, 12]] and int(total.paired[3].sum()) == 10
    assert Counts.of(found.document()).state().keys() == sent.keys()

    def refused(match: str, **changed: torch.Tensor) -> None:
        with pytest.raises(DataError, match=match):
            check_counts({**sent, **changed}, new, {3: old}, ["a", "b"], 5)

    refused("cannot be", confusion=-confusion)
    refused("cannot be", confusion=confusion.double())
    refused("does not send", confusion=torch.tensor([[4, 1], [0, 4]]))
    refused("contradict", **{"paired-3": paired.flip(2)})
    with pytest.raises(DataError, match="does not send"):
        check_counts(sent, new, {3: old}, ["a"], 5)


def test_of_a_patient_one_test_image_of_a_class_is_counted(tmp_path: Path) -> None:
    rows = [("1.png", "a", "p"), ("2.png", "a", "p"), ("3.png", "b", "p"), ("4.png", "a", "q")]
    samples = [Sample(file, "test", label, group, file) for file, label, group in rows]
    images = ImageSet(tmp_path, tuple(samples))
    assert [own.file for own in patients_tested(images, "ab", 1)] == ["1.png", "4.png", "3.png"]
    assert [own.file for own in patients_tested(images, "ab", 2)] == ["1.png", "4.png"]
    assert not patients_tested(images, "c", 1)
