"""A learner that goes by columns beside the images: learnt, forgotten, published, answered with."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from typer.testing import CliRunner

from dynammo.clinical import Counts
from dynammo.errors import ConfigError, DataError
from flows.cli import app
from flows.forget import forget
from flows.incremental import incremental
from flows.learn import learn
from tasks.monitor_learner import monitor_version
from tasks.support.version import find_learner
from tests.flows.project import OVERRIDES, TASKS

pytestmark = pytest.mark.usefixtures("prefect_server")

SETTINGS = {**OVERRIDES, "clinical.categories": ["ward"], "clinical.numbers": ["age"]}


def dynammo(*arguments: str | Path, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return result.output


@pytest.fixture
def listed(here: Path) -> Callable[..., Path]:
    """A batch of noise as a CSV in which each class has a ward, and every other image an age of its
    class's: nothing but these tells the classes apart.
    """

    def write(name: str, classes: list[str]) -> Path:
        random = np.random.default_rng(len(name) + ord(name[-1]))
        files = [here / name / label / f"{n}.png" for label in classes for n in range(12)]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (48, 48, 3), np.uint8)).save(file)
        target = here / f"{name}.csv"
        with target.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "class", "ward", "age"])
            for number, image in enumerate(files):
                label = image.parent.name
                age = 30 + 10 * classes.index(label) if number % 2 else ""
                writer.writerow([image.relative_to(here), label, f"ward {label}", age])
        return target

    return write


def test_a_learner_goes_by_what_is_beside_the_images(
    here: Path, listed: Callable[..., Path]
) -> None:
    first, second = listed("batch1", TASKS[0]), listed("batch2", TASKS[1])
    learn("shapes", str(first), None, SETTINGS)
    folder = find_learner("shapes")

    def counts(number: int) -> Counts:
        found: Counts = folder.store.load_json(
            folder.version(number)["stage"]["clinical"]["counts"]
        )
        return found

    images = len(list((here / "batch1").rglob("*.png")))
    tests = folder.current()["batches"][0]["test_images"]
    wards = counts(1)["categories"]["ward"]
    assert [sum(own) for own in zip(*wards.values(), strict=True)] == [(images - tests) // 2] * 2
    assert wards.keys() == {f"ward {name}" for name in TASKS[0]}
    # A training image's row is kept nowhere, a test image's until the image goes.
    state = folder.store.load(folder.current()["tests"][0]["kept"]["labels"])
    assert {"column/ward", "column/age"} <= state.keys()
    # Subgroups are compared by categories, too, not by numbers.
    assert folder.current()["judgement"]["subgroups"].keys() == {"ward"}

    learn("shapes", str(second))
    after = counts(2)
    assert {name: own[:2] for name, own in after["categories"]["ward"].items()} == {
        **wards,
        **{f"ward {name}": [0, 0] for name in TASKS[1]},
    }

    # What was measured is what the published model answers, with the columns; not without.
    dynammo("promote", "shapes", "2", "--reason", "test")
    model = folder.path / "model"
    labelled = here / "all.csv"
    with labelled.open("w") as file:
        file.write("file,ward\n")
        for path in (first, second):
            file.writelines(f"{row['file']},{row['ward']}\n" for row in csv.DictReader(path.open()))
    files = sorted(here.glob("batch*/**/*.png"))
    sure = {}
    for name, more in (("alone", ()), ("beside", ("--clinical", str(labelled)))):
        output = here / f"{name}.csv"
        dynammo("predict", *files, "--model", model, "-o", output, *more)
        rows = csv.DictReader(output.open())
        sure[name] = sum(
            float(row[file.parent.name]) for row, file in zip(rows, files, strict=True)
        )
    assert sure["beside"] > sure["alone"]
    other = here / "other.csv"
    other.write_text("file,ward\nnone.png,ward amber\n")
    refused = dynammo("predict", files[0], "--model", model, "--clinical", other, status=1)
    assert "says nothing of these images: expected file and some of ward, age" in refused

    # A monitor compares answers by the image alone on both sides.
    for number, file in enumerate(sorted((here / "batch1").rglob("*.png"))[:4]):
        (here / "new").mkdir(exist_ok=True)
        with Image.open(file) as picture:
            ImageOps.mirror(picture).save(here / f"new/{number}.png")
    found = monitor_version.fn(str(folder.path), 2, str(here / "new"), 0.5)
    assert "answers" in {check["name"] for check in found["checks"]}

    forget("shapes", batches=[2])
    assert counts(3) == counts(1)
    forget("shapes", classes=[TASKS[0][1]])
    assert counts(4)["categories"] == {"ward": {f"ward {TASKS[0][0]}": [(images - tests) // 2]}}
    assert json.loads((folder.path / "model/model.json").read_text())["clinical"]["weight"] == 0.75


def test_a_run_goes_by_them_too(
    here: Path, listed: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row for n in (0, 1) for row in csv.DictReader(listed(f"batch{n}", TASKS[n]).open())]
    path = here / "all.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["split", *rows[0]])
        writer.writeheader()
        writer.writerows(
            {**row, "split": "test" if number % 4 > 1 else "train"}
            for number, row in enumerate(rows)
        )
    settings = {
        **OVERRIDES,
        "data.name": "run",
        "data.source": "csv",
        "data.path": str(path),
        "scenario.classes_per_task": 2,
        "scenario.class_order": "sorted",
    }
    columns = {"clinical.categories": ["ward"], "clinical.numbers": ["age"]}
    alone = incremental(None, settings)["summary"]["merged"]
    beside = incremental(None, {**settings, **columns})
    assert (
        "columns beside images count for merged and frozen alone, not for unmerged" in caplog.text
    )
    assert beside["summary"]["merged"]["last_accuracy"] > alone["last_accuracy"] + 0.1
    model = json.loads((Path(beside["output"]) / "model/model.json").read_text())
    assert model["clinical"]["categories"]["ward"].keys() == {
        f"ward {name}" for own in TASKS[:2] for name in own
    }

    path.write_text(path.read_text().replace(",40\n", ",old\n", 1))
    with pytest.raises(DataError, match="age: 'old' is no number"):
        incremental(None, {**settings, **columns})
    with pytest.raises(DataError, match="missing columns sex, which are asked for"):
        incremental(None, {**settings, "clinical.categories": ["sex"]})
    with pytest.raises(ConfigError, match=r"clinical: folder knows no columns \(ward, age\); csv"):
        incremental(None, {**settings, **columns, "data.source": "folder"})


def test_what_is_no_clinical_column_is_refused(here: Path, listed: Callable[..., Path]) -> None:
    path = listed("batch1", TASKS[0])
    path.write_text(path.read_text().replace(",40\n", ",old\n", 1))
    with pytest.raises(DataError, match=r"amber|birch.*: age: 'old' is no number"):
        learn("shapes", str(path), None, SETTINGS)
    with pytest.raises(DataError, match=r"missing columns sex, which are asked for"):
        learn("shapes", str(path), None, {**SETTINGS, "clinical.categories": ["sex"]})
    with pytest.raises(ConfigError, match="'age' is named twice"):
        learn("shapes", str(path), None, {**SETTINGS, "clinical.categories": ["age"]})
    assert not find_learner("shapes").exists
    learn("shapes", str(listed("batch2", TASKS[0])), None, OVERRIDES)
    model = find_learner("shapes").path / "model"
    refused = dynammo("predict", here / "batch2", "--model", model, "--clinical", path, status=1)
    assert "--clinical: this model goes by images alone" in refused

    # Columns may be asked for later; what came before says nothing of them.
    later = {"clinical.categories": ["ward"]}
    learn("shapes", str(listed("batch3", TASKS[1])), None, later)
    folder = find_learner("shapes")
    stage = folder.current()["stage"]
    wards = folder.store.load_json(stage["clinical"]["counts"])["categories"]["ward"]
    assert all(own[:2] == [0, 0] and sum(own) > 0 for own in wards.values())
    forget("shapes", batches=[2])
    stage = folder.current()["stage"]
    assert folder.store.load_json(stage["clinical"]["counts"])["categories"] == {}
    assert folder.current()["notes"] == []
