"""The benchmarks still run, with a tiny network and few images; no time is asserted."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from benchmarks import open_set, siblings, updates
from dynammo.checkpoint import to_json
from dynammo.config import BackboneConfig, HeadConfig
from dynammo.evaluation.metrics import open_set_auroc
from dynammo.evaluation.plan import read_plan
from dynammo.heads.statistics import ClassStatistics
from dynammo.network.backbones import pretrained_weights
from dynammo.network.cost import count_macs
from dynammo.network.network import build_network
from tests.dynammo.reporting.test_change import document
from tests.models import graph_folder

FOLDER = Path(__file__).parents[2] / "benchmarks"
TINY = ["--set", "backbone.name=test_resnet", "--set", "backbone.pretrained=false"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Runs one as its command does."""
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(FOLDER))

    def run(name: str, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(FOLDER / name), run_name="__main__")

    yield run
    torch.set_num_threads(threads)


def test_speed(benchmark: Callable[..., None], tmp_path: Path) -> None:
    """All but the memory of processes, which take long to start."""
    output = tmp_path / "speed.json"
    network = ["--random", "--backbone", "test_resnet"]
    benchmark("speed.py", "--quick", *network, "--only", 1, 2, 3, 4, 6, "--json", output)
    results = json.loads(output.read_text())
    assert len(results) == 5
    plain, library = (
        np.array([float(value) for name, value in row.items() if name.isdigit()])
        for row in results["a whole run"]["accuracy"]
    )
    assert len(plain) == 5  # tasks
    assert np.abs(plain - library).max() < 0.06  # one of the twenty images may round differently


def test_throughput(benchmark: Callable[..., None], tmp_path: Path) -> None:
    output = tmp_path / "throughput.json"
    network = ["--backbone", "test_resnet", "--size", 64]
    benchmark(
        "throughput.py", *network, "--batch", 4, "--images", 4, "--repeats", 1, "--json", output
    )
    results = json.loads(output.read_text())
    forward, whole, step, training = (
        results.pop(name)["macs"] for name in list(results) if " " in name
    )
    config = BackboneConfig(name="test_resnet", pretrained=False)
    bare = build_network(config, pretrained_weights(config, seed=0), 64)
    assert forward == count_macs(bare, 64)
    # Backwards a layer takes its work once more for its weights and once for its input, which the
    # first layer has none of; frozen weights take none, and nothing goes back to before an adapter.
    assert 2.5 * forward < whole < 3 * forward
    assert forward < step < training < whole


def test_ablation(
    benchmark: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        for label in range(4):
            folder = tmp_path / "images" / split / str(label)
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(60 * label, 60 * label + 75, (32, 32, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    output = tmp_path / "ablation.json"
    benchmark(
        "ablation.py",
        *TINY,
        *("--set", "backbone.levels=2", "--set", "image.size=32", "--set", "train.epochs=1"),
        *("--set", "head.epochs=2", "--set", "memory.size=8", "--seeds", 1, 2, "--rules", "ties"),
        *("--set", "data.name=x", "--set", f"data.path={tmp_path / 'images'}"),
        *("--output", output),
    )
    results = json.loads(output.read_text())
    assert {"unmerged (ACL)", "merged, discriminant", "merged by ties, discriminant"} < set(results)
    for name, seeds in results.items():
        assert list(seeds) == ["1", "2"], name
        for recalls in seeds.values():
            assert len(recalls) == 2 and all(0 <= recall <= 100 for recall in recalls), name
    assert capsys.readouterr().out.count("\n| ") == len(results)


def test_delta(
    benchmark: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [graph_folder(tmp_path / f"version-{side}", side) for side in (16, 32, 64)]
    benchmark("delta.py", *models)
    told = capsys.readouterr().out
    assert "| version-32 |" in told
    assert "| version-64 |" in told


def test_scores_of_unknown_images_and_their_folds() -> None:
    """Three classes, of which a fourth is far: all scores find it; no patient is on two sides."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(160) % 4
    features = 9 * torch.eye(4, 8)[labels] + torch.randn(160, 8, generator=generator)
    looks = np.random.default_rng(0).normal(size=(160, 12)) + 9 * np.eye(4, 12)[labels]
    groups = np.array([f"{label} {row // 8}" for row, label in enumerate(labels.tolist())])
    turns = list(open_set.folds(labels.numpy(), groups, None))
    assert len(turns) == 5
    for fit, limit, rest in turns:
        assert len({*fit, *limit, *rest}) == 160
        assert not set(groups[limit]) & set(groups[rest])
        fit, limit = (own[labels[own] < 3] for own in (fit, limit))
        found = open_set.scores(
            features, looks, labels, fit, limit, HeadConfig(shrinkage=0.1), slice(-8, None)
        )
        for name, values in found.items():
            area = open_set_auroc((labels < 3).numpy()[rest], -values[rest])
            assert area is not None and area > 0.8, name
        assert np.array_equal(found["Mahalanobis"], found["Mahalanobis, last level"])
    tests = np.zeros(160, dtype=bool)
    mine = open_set.Pictures(features, looks, labels.numpy(), groups, tests, slice(-8, None))
    rows = open_set.foreign(
        mine, [mine._replace(features=features + 99)], HeadConfig(shrinkage=0.1)
    )
    areas, alarms, shares = np.array(rows["Mahalanobis"]).T
    assert (areas == 1).all() and (shares == 1).all() and alarms.mean() < 0.2


def test_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its batches, its plan and what it tells of a report; the learning takes minutes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    rows = ["file,class,split,group", "train/NV/1.png,NV,train,p", "train/AK/2.png,AK,train,q"]
    (tmp_path / "images/manifest.csv").write_text("\n".join(rows))
    own = Path(updates.pick("ak", ["AK"])).read_text()
    assert own == "file,class,split,group\nimages/train/AK/2.png,AK,train,q\n"
    plan = {**updates.PLAN, "limits": updates.LIMITS, "authorised": updates.FIRST}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert read_plan(tmp_path / "plan.yaml").locked_test is None
    (tmp_path / "report.json").write_bytes(to_json(document()))
    updates.tell(tmp_path / "report.json")
    told = capsys.readouterr().out
    assert "recall of old classes 90.0 -> 70.0 (-20.0, -30.0, -10.0)" in told
    assert "called unknown, of all: by_answer 0.021, by_appearance 0.024, share 0.043" in told
    assert "nevus: 20 images, coverage 0.912, set_size 1.500, false_alarms -, found 0.099" in told


def test_means_are_drawn_to_those_of_siblings() -> None:
    means = torch.tensor([[0.0, 2.0], [8.0, 2.0], [5.0, 5.0]], dtype=torch.float64)
    counts = torch.tensor([2.0, 6.0, 4.0], dtype=torch.float64)
    own = ClassStatistics(means, torch.eye(2, dtype=torch.float64), counts)
    # The siblings' mean is (4, 2), whatever their counts: (2 * 0 + 2 * 4) / 4, (6 * 8 + 2 * 4) / 8.
    found = siblings.towards_siblings(own, ["a", "a", "b"], 2)
    assert found.tolist() == [[2.0, 2.0], [7.0, 2.0], [5.0, 5.0]]
    assert torch.equal(siblings.towards_siblings(own, ["a", "a", "b"], 0), means)
    trees = siblings.trees(
        [name for of in siblings.TREES["by tissue"].values() for name in of], [1, 2]
    )
    assert sorted(trees["at random"][1]) == sorted(trees["by tissue"][2])
