"""FedAvg beside our federation, on pictures of six classes at three sites."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flower import FLOWER, ROOT, environment, needs_flower
from tests.flows.project import CLASSES, write_pictures

SETTINGS = ("backbone.name=test_resnet", "backbone.pretrained=false", "backbone.levels=null")
TINY = [part for own in (*SETTINGS, "image.size=32", "device=cpu") for part in ("--set", own)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures a patient, dealt out to three sites by class and by patient."""
    folder = tmp_path_factory.mktemp("shapes")
    write_pictures(folder)
    path = folder / "manifest.csv"
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file", "split", "class", "group"])
        for file in sorted(folder.glob("*/*/*.png")):
            split, label = file.parts[-3:-1]
            patient = f"{split}-{label}-{int(file.stem) // 2}"
            rows.writerow([file.relative_to(folder).as_posix(), split, label, patient])
    for by in ("class", "patient"):
        command = [sys.executable, str(ROOT / "benchmarks" / "federated_sites.py"), str(path), by]
        subprocess.run(command, check=True, capture_output=True)
    return path


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_training_image_is_at_one_site(manifest: Path) -> None:
    wanted = sorted(row["file"] for row in read(manifest) if row["split"] == "train")
    for by, column in (("class", "class"), ("patient", "group")):
        sites = [read(manifest.with_name(f"by_{by}_{letter}.csv")) for letter in "abc"]
        assert sorted(row["file"] for site in sites for row in site) == wanted
        owned = [{row[column] for row in site} for site in sites]
        assert sum(map(len, owned)) == len(set.union(*owned))  # nothing is at two of them
    assert all({row["class"] for row in site} == set(CLASSES) for site in sites)


def test_rounds_of_training(manifest: Path) -> None:
    sites = [str(manifest.with_name(f"by_class_{letter}.csv")) for letter in "abc"]
    command = [sys.executable, str(ROOT / "benchmarks" / "federated_rounds.py"), *sites, *TINY]
    command += ["--rounds", "2", "--min-patients", "1", "--seed", "3", "-s", "train.epochs=1"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment(manifest.parent)
    )
    # The classes differ in colour and stripes: none is mistaken, unless something is broken.
    assert done.stdout.splitlines()[1:] == ["3 | 1 | 100.0 | 100.0", "3 | 2 | 100.0 | 100.0"]


@needs_flower
def test_fedavg(manifest: Path, tmp_path: Path) -> None:
    """The rate is chosen on what the sites held out, and every byte of both ways is counted."""
    sites = [str(manifest.with_name(f"by_class_{letter}.csv")) for letter in "abc"]
    command = [FLOWER, str(ROOT / "benchmarks" / "federated_fedavg.py"), *sites]
    command += ["--test", str(manifest), "--rounds", "2", "--epochs", "1", "--min-patients", "1"]
    command += ["--rate", "1e-9", "--rate", "0.01"]
    command += TINY
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(tmp_path)
    )
    assert not done.returncode, done.stderr[-3000:]
    found = json.loads(done.stdout[done.stdout.index("{\n") : done.stdout.rindex("}\n") + 1])
    # Of the eight images of a class a fifth is held out, in whole patients of two.
    assert found["images"] == {"training": [12, 12, 12], "validation": 12, "test": 24}
    recalls = found["recall on validation images by rate"]
    assert found["rate"] == float(max(recalls, key=lambda rate: recalls[rate]))
    before, first, second = found["rounds"]
    # The head starts at zero: every image is answered as the first of six classes.
    assert before["test"] == pytest.approx({"accuracy": 1 / 6, "recall": 1 / 6})
    assert before["from_sites"] == before["to_sites"] == 0
    assert first["from_sites"] == first["to_sites"] > 3 * 4 * 6  # the head's biases alone
    assert second["from_sites"] == first["from_sites"]
    assert "| 2 |" in done.stdout
