"""A file of what classes belong to: kept with a learner, measured by, and taken over anew."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynammo.errors import ConfigError
from dynammo.hierarchy import costs
from flows.forget import forget
from flows.incremental import incremental
from flows.learn import learn
from tasks.support.version import find_learner
from tests.flows import project
from tests.flows.project import CLASSES, TASKS

pytestmark = pytest.mark.usefixtures("prefect_server")

# Not the seed of the others: what the first run of the experiment does must not be done already.
OVERRIDES = {**project.OVERRIDES, "seed": 4}
FIRST = {"amber": "yellow", "birch": "white"}
SECOND = {"amber": "warm", "coral": "red", "red": "warm", "dusk": "cold"}


def write(name: str, parents: dict[str, str]) -> str:
    lines = ["class,parent", *(",".join(pair) for pair in parents.items())]
    Path(name).write_text("\n".join(lines) + "\n")
    return name


def expected(document: dict[str, Any], parents: dict[str, str]) -> float:
    """The cost, from the confusion matrix: each class with images weighs the same."""
    counts = np.array(document["confusion"])
    shares = counts / counts.sum(axis=1, keepdims=True)
    return float((shares * costs(parents, document["classes"])).sum(axis=1).mean())


def test_a_learner_keeps_what_its_classes_belong_to(
    here: Path, arrive: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (arrive(f"batch{n}", TASKS[n]) for n in (0, 1))
    learn("shapes", str(first), None, {**OVERRIDES, "classes.parents": write("p.csv", FIRST)})
    folder = find_learner("shapes")

    def metrics(method: str) -> dict[str, Any]:
        evaluated = folder.current()["stage"]["methods"][method]["evaluated"]
        found: dict[str, Any] = folder.store.load_json(evaluated["metrics"])
        return found

    for method in ("merged", "frozen"):
        found = metrics(method)
        assert found["hierarchical_cost"] == pytest.approx(expected(found, FIRST))
    assert metrics("merged")["per_group"].keys() == {"yellow", "white"}
    assert json.loads((folder.path / "model/model.json").read_text())["parents"] == FIRST
    assert folder.current()["notes"] == []

    Path("p.csv").unlink()  # what it said is kept
    wrong = {"classes.parents": write("wrong.csv", {"dusk": "amber"})}
    with pytest.raises(ConfigError) as caught:
        learn("shapes", str(second), None, wrong)
    assert caught.value.problems == [
        "classes.parents: wrong.csv: 'amber' is the parent of 'dusk' and a class with images; a "
        "group needs a name of its own"
    ]
    caplog.clear()
    learn("shapes", str(second), None, {"classes.parents": write("q.csv", SECOND)})
    assert "q.csv does not name birch: in no group with any other class" in caplog.text
    (note,) = folder.current()["notes"]
    assert note.startswith("classes.parents is taken over from q.csv (SHA-256 ")
    assert "amber is below warm, not below yellow; coral is below red" in note
    found = metrics("merged")
    assert found["hierarchical_cost"] == pytest.approx(expected(found, SECOND))
    assert found["per_group"]["warm"]["classes"] == ["amber", "coral"]
    report = json.loads((folder.path / "reports/0002.json").read_text())
    assert report["hierarchy"].startswith("q.csv, SHA-256 ")
    told = report["judgement"]["hierarchy"]
    assert told["cost"] == found["hierarchical_cost"]
    assert told["groups"]["red"]["below"] == "warm"
    # Compared on the images of the two classes that the champion knows.
    assert told["groups"]["warm"]["both"]["old"] == metrics_of(folder.version(1), "amber", folder)
    assert told["groups"]["cold"]["both"] is None

    Path("q.csv").unlink()
    forget("shapes", classes=["dusk"])
    assert metrics("merged")["per_group"].keys() == {"warm", "red"}
    assert folder.current()["config"]["classes"]["parents"]["content"] == SECOND


def metrics_of(version: dict[str, Any], name: str, folder: Any) -> float:
    """Recall of a class when the version was made."""
    evaluated = version["stage"]["methods"]["merged"]["evaluated"]
    recall: float = folder.store.load_json(evaluated["metrics"])["per_class"][name]["recall"]
    return recall


def test_every_method_of_a_run_is_measured_by_what_classes_belong_to(
    here: Path, pictures: Path
) -> None:
    parents = {name: "warm" if number % 2 else "cold" for number, name in enumerate(CLASSES)}
    overrides = {
        **OVERRIDES,
        "methods": ["merged", "unmerged", "ncm"],
        "data": {"name": "whole", "source": "folder", "path": str(pictures)},
        "scenario.tasks": TASKS,
        "output": str(here / "results"),
    }
    with pytest.raises(ConfigError, match="'fern' is the parent of 'amber' and a class with"):
        incremental(None, {**overrides, "classes.parents": write("w.csv", {"amber": "fern"})})
    incremental(None, {**overrides, "classes.parents": write("p.csv", parents)})
    results = json.loads((here / "results/results.json").read_text())["variants"]
    summary = json.loads((here / "results/metrics.json").read_text())
    for method in overrides["methods"]:
        for stage in results[method]["stages"]:
            assert stage["hierarchical_cost"] == pytest.approx(expected(stage, parents))
        last = results[method]["stages"][-1]
        assert last["per_group"]["warm"]["support"] == 12
        assert summary[method]["last_hierarchical_cost"] == last["hierarchical_cost"]
        with (here / f"results/curves/{method}.csv").open() as file:
            rows = [*csv.DictReader(file)]
        assert float(rows[-1]["hierarchical_cost"]) == last["hierarchical_cost"]
