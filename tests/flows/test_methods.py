"""Methods of every kind through the flow: learnt, remembered, measured and recorded alike."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dynammo.errors import ConfigError
from flows.incremental import incremental
from tasks.support.workspace import CHECKPOINTS
from tests.flows.project import Project, steps
from tests.flows.test_incremental import again, artifacts, kinds, parent_and_children

METHODS = ["derpp", "ncm", "joint"]  # remembers exemplars, trains nothing, keeps all images
FEW: dict[str, Any] = {
    "seed": 5,  # shares no step with other tests
    "methods": METHODS,
    "scenario__tasks": [["amber", "birch"], ["coral", "dusk"]],
    "image__size": 32,
    "train__epochs": 1,
}


@pytest.mark.usefixtures("prefect_server")
def test_methods_run_through_the_flow(new: Project) -> None:
    with new.entered():
        first = steps(new.run(**FEW))
        tasks = ["1/2", "2/2"]
        assert set(first) == {
            "prepare backbone test_resnet",
            *(f"keep {split} images {task}" for split in ("train", "test") for task in tasks),
            *(f"learn {name} {task}" for name in METHODS for task in tasks),
            *(f"select exemplars: derpp {task}" for task in tasks),
            *(f"extract test features: ncm {task}" for task in tasks),
            *(f"evaluate {name} {task}" for name in METHODS for task in tasks),
        }
        metrics = new.read("metrics.json")
        assert set(metrics) == set(METHODS)
        assert metrics["derpp"]["gmacs"] == metrics["joint"]["gmacs"] == metrics["ncm"]["gmacs"]
        assert new.read("results.json")["gate"] is None
        report = (new.results / "report.html").read_text(encoding="utf-8")
        assert "replay of exemplars with the logits" in report

        _, children = parent_and_children()
        assert set(children) == set(METHODS)
        for name, run in children.items():
            trains = name != "ncm"
            assert ("train_loss_task_02" in run.data.metrics) == trains
            assert run.data.metrics["accuracy"] == metrics[name]["last_accuracy"]
            assert kinds(artifacts(run, "metrics/task-02")) == [f"metrics-{name}.json"]

        # Nothing is done twice: an option of one method concerns that method alone.
        changed = again(new.run(**FEW, method_options__derpp={"alpha": 0.5}))
        assert changed == {name for name in first if " derpp " in f"{name} ".replace(":", " ")}

        # Every state says where it came from. Learnt and remembered in two tasks, with two options,
        # which change nothing before the second task.
        files = CHECKPOINTS.folder.glob("state-derpp-*.json")
        states = [json.loads(file.read_text()) for file in files]
        assert len(states) == 6
        assert all({"method", "backbone"} <= state["parents"].keys() for state in states)


def test_a_wrong_option_is_refused_before_anything_is_done(
    prefect_server: None, new: Project
) -> None:
    wrong = {"methods": ["ncm", "ewc"], "method_options": {"ewc": {"strenght": 1}}}
    expected = "unknown option 'strenght'; known: strength"
    with new.entered(), pytest.raises(ConfigError, match=expected):
        incremental(str(new.params), wrong)
    assert not (new.folder / "mlartifacts").exists()
