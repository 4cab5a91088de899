"""Merge rules that need more than adapters: what is computed for them, once and only if asked."""

from __future__ import annotations

from typing import Any

import pytest

from dynammo.errors import ConfigError
from flows.incremental import incremental
from tasks.support.workspace import CHECKPOINTS
from tests.flows.project import Project, steps

TASKS = ["1/3", "2/3", "3/3"]
SHORT: dict[str, Any] = {"methods": ["merged"], "tracking__register_model": False}


def again(states: dict[str, str]) -> set[str]:
    return {name for name, state in steps(states).items() if state != "Cached"}


def parents(rule: str) -> list[dict[str, Any]]:
    """What the adapters that a rule merged were made from, fewest tasks first."""
    files = CHECKPOINTS.folder.glob("merged-*.safetensors")
    metas = [CHECKPOINTS.meta({"path": file.name, "sha256": ""}) for file in files]
    found = [meta["parents"] for meta in metas if meta["config"]["merge"]["rule"] == rule]
    return sorted(found, key=lambda made: len(made["adapters"]))


def test_statistics_are_measured_once_a_task(finished: Project) -> None:
    given = {"merge__rule": "fisher", "output": "fisher"}
    first = finished.run(**given, **SHORT)
    measured = {f"adapter statistics: fisher {task}" for task in TASKS}
    assert {name for name in again(first) if name.startswith("adapter statistics")} == measured
    assert {f"merge adapters {task}" for task in TASKS} <= again(first)
    assert steps(first)["train adapter 1/3"] == "Cached"
    assert [len(made["fisher"]) for made in parents("fisher")] == [1, 2, 3]
    # With another option the first task is merged again, and only merged.
    other = again(finished.run(**given, merge__options={"floor": 1e6}, **SHORT))
    assert "merge adapters 1/3" in other
    assert "adapter statistics: fisher 1/3" not in other


def test_task_vectors_start_from_the_untrained_adapter(finished: Project) -> None:
    states = steps(finished.run(merge__rule="dare", output="dare", **SHORT))
    assert "initial adapter" in states
    assert not [name for name in states if name.startswith("adapter statistics")]
    made = parents("dare")
    assert len({(m["base"], m["seed"]) for m in made}) == 1
    digest = made[0]["base"]
    path = f"initial-adapter-{digest[:16]}.safetensors"
    base = CHECKPOINTS.load({"path": path, "sha256": digest})
    assert base and not any(v.any() for v in base.values())  # linear adapters start at zero


def test_samples_are_the_tasks_own_training_images(finished: Project) -> None:
    states = steps(finished.run(merge__rule="weighted", output="weighted", **SHORT))
    assert not [name for name in states if name.startswith(("adapter statistics", "initial"))]
    assert [made["samples"] for made in parents("weighted")] == [[16], [16, 16], [16, 16, 16]]


def test_a_wrong_option_is_refused_before_anything_is_done(finished: Project) -> None:
    overrides = {"merge.rule": "ties", "merge.options": {"keep": 20}, "output": "wrong"}
    with pytest.raises(ConfigError, match=r"merge\.options for 'ties': keep must be"):
        incremental(str(finished.params), overrides)
    assert not (finished.folder / "wrong").exists()
