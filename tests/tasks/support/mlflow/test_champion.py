from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from dynammo.config import GateConfig
from tasks.support.mlflow.champion import Champion, Decision, current_champion, gate, promote
from tasks.support.mlflow.runs import TrackingError, tracking_uri

CONFIG = GateConfig(min_last_recall=0.5, max_gap_to_unmerged=0.05, beat_champion=True)
HASH, CLASSES = "a" * 64, ["naevus", "melanoma"]
LOSES = ["beat_champion"]
PASSED: Decision = {"passed": True, "checks": []}


def summary(recall: float | None) -> dict[str, float | None]:
    return {"last_mean_class_recall": recall, "last_accuracy": 0.9}


def champion(**changes: Any) -> Champion:
    known: Champion = {
        "version": "3",
        "last_mean_class_recall": 0.8,
        "data_hash": HASH,
        "classes": list(reversed(CLASSES)),
        "learner": None,
    }
    known.update(changes)  # type: ignore[typeddict-item]
    return known


def decide(
    recall: float | None,
    unmerged: float | None = None,
    champion: Champion | None = None,
    config: GateConfig = CONFIG,
) -> Decision:
    return gate(
        config,
        summary(recall),
        summary(unmerged) if unmerged is not None else None,
        champion,
        data_hash=HASH,
        classes=CLASSES,
    )


def failed(decision: Decision) -> list[str]:
    names = [check["name"] for check in decision["checks"] if not check["passed"]]
    assert decision["passed"] == (not names)
    return names


@pytest.mark.parametrize(
    ("recall", "unmerged", "failing"),
    [
        (0.5, None, []),
        (0.49, None, ["min_last_recall"]),
        (0.75, 0.8, []),  # 0.8 - 0.75 is 0.05 but for rounding
        (0.74, 0.8, ["max_gap_to_unmerged"]),
        (0.9, 0.8, []),
        (0.3, 0.8, ["min_last_recall", "max_gap_to_unmerged"]),
        (None, 0.8, ["min_last_recall"]),
        (float("nan"), 0.8, ["min_last_recall", "max_gap_to_unmerged"]),
    ],
)
def test_recall_and_the_gap_to_unmerged(
    recall: float | None, unmerged: float | None, failing: list[str]
) -> None:
    assert failed(decide(recall, unmerged)) == failing


def test_a_gap_may_be_required_to_be_a_lead() -> None:
    strict = GateConfig(max_gap_to_unmerged=-0.02)
    assert failed(decide(0.81, 0.8, config=strict)) == ["max_gap_to_unmerged"]
    assert failed(decide(0.82, 0.8, config=strict)) == []


@pytest.mark.parametrize(
    ("present", "failing", "said"),
    [
        (None, [], "no champion yet"),
        (champion(), LOSES, "champion 3 has 80.00%, this model 75.00%"),
        (champion(last_mean_class_recall=0.75), [], "champion 3 has 75.00%, this model 75.00%"),
        (champion(data_hash="b" * 64), LOSES, "with champion 3: it was measured on other data"),
        (champion(data_hash=None), LOSES, "with champion 3: it was measured on other data"),
        (champion(classes=["naevus"]), LOSES, "with champion 3: it knows other classes"),
        (champion(classes=None), LOSES, "with champion 3: it knows other classes"),
        (
            champion(last_mean_class_recall=None),
            LOSES,
            "with champion 3: it has no last_mean_class_recall",
        ),
    ],
)
def test_a_champion_must_be_comparable_and_no_better(
    present: Champion | None, failing: list[str], said: str
) -> None:
    decision = decide(0.75, champion=present)
    assert failed(decision) == failing
    assert said in decision["checks"][-1]["detail"]


def test_a_model_without_a_recall_is_not_compared() -> None:
    decision = decide(None, champion=champion())
    assert failed(decision) == ["min_last_recall", "beat_champion"]
    assert decision["checks"][-1]["detail"] == (
        "cannot be compared with champion 3: this model has no last_mean_class_recall"
    )


def test_the_comparison_can_be_switched_off() -> None:
    off = GateConfig(beat_champion=False)
    assert failed(decide(0.75, champion=champion(), config=off)) == []
    assert failed(decide(0.75, champion=champion(data_hash="b" * 64), config=off)) == []


def test_no_experiment_takes_the_place_of_a_learners_version() -> None:
    for config in (CONFIG, GateConfig(beat_champion=False)):
        decision = decide(0.9, champion=champion(learner="skin"), config=config)
        assert failed(decision) == LOSES
        assert (
            "3, of the learner skin: no experiment takes its place"
            in decision["checks"][-1]["detail"]
        )


def new_version(name: str, tags: dict[str, str], run_id: str | None = None) -> str:
    client = MlflowClient(tracking_uri())
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    return str(client.create_model_version(name, "file:///nowhere", run_id, tags).version)


def test_promotion_moves_the_alias(tracking: Path) -> None:
    tags = {"data_hash": HASH, "classes": '["na\\u00efve", "b"]', "last_mean_class_recall": "0.1"}
    assert current_champion("dynammo-skin8") is None
    first = new_version("dynammo-skin8", tags)
    assert current_champion("dynammo-skin8") is None
    assert promote("dynammo-skin8", first, PASSED)
    assert current_champion("dynammo-skin8") == {
        "version": first,
        "last_mean_class_recall": 0.1,
        "data_hash": HASH,
        "classes": ["naïve", "b"],
        "learner": None,
    }
    second = new_version("dynammo-skin8", {"learner": "skin8"})
    assert promote("dynammo-skin8", second, PASSED)
    assert current_champion("dynammo-skin8") == {
        "version": second,
        "last_mean_class_recall": None,
        "data_hash": None,
        "classes": None,
        "learner": "skin8",
    }
    assert current_champion("dynammo-other") is None


def test_a_run_whose_version_is_champion_already_is_judged_as_before(tracking: Path) -> None:
    """Killed behind the alias, or finished, and given again: not compared with itself."""
    client = MlflowClient(tracking_uri())
    runs = [client.create_run("0").info.run_id for _ in range(2)]
    tags = {"data_hash": HASH, "classes": json.dumps(CLASSES)}
    versions: list[str] = []
    for run, recall, said in (
        (runs[0], 0.7, "there is no champion yet"),
        (runs[1], 0.8, "champion 1 has 70.00%, this model 80.00%"),
    ):
        measured = {**tags, "last_mean_class_recall": str(recall)}
        versions.append(new_version("dynammo-skin8", measured, run))
        for _ in range(3):
            decision = decide(recall, champion=current_champion("dynammo-skin8", run))
            assert decision["checks"][-1]["detail"] == said
            assert promote("dynammo-skin8", versions[-1], decision)
    # Another version of the same run, as of a model folder with one file more.
    newer = new_version("dynammo-skin8", tags, runs[1])
    promote("dynammo-skin8", newer, PASSED)
    before = current_champion("dynammo-skin8", runs[1])
    assert before is not None and before["version"] == versions[0]
    anyone = current_champion("dynammo-skin8")
    assert anyone is not None and anyone["version"] == newer


def test_a_failed_gate_leaves_the_alias_and_says_why(tracking: Path) -> None:
    first = new_version("dynammo-skin8", {})
    promote("dynammo-skin8", first, PASSED)
    second = new_version("dynammo-skin8", {})
    assert not promote("dynammo-skin8", second, decide(0.3))
    now = current_champion("dynammo-skin8")
    assert now is not None
    assert now["version"] == first
    tags = MlflowClient(tracking_uri()).get_model_version("dynammo-skin8", second).tags
    assert tags["gate"] == "not passed: last mean class recall 30.00%, at least 50.00%"


def test_promotion_against_the_gate_records_its_reason(tracking: Path) -> None:
    first, second = new_version("dynammo-skin8", {}), new_version("dynammo-skin8", {})
    promote("dynammo-skin8", first, PASSED, reason="not needed")
    with pytest.raises(ValueError, match="needs a reason, got a blank one"):
        promote("dynammo-skin8", second, decide(0.3), reason=" ")
    now = current_champion("dynammo-skin8")
    assert now is not None and now["version"] == first
    assert promote("dynammo-skin8", second, decide(0.3), reason="seen by Dr. Weber, 3 images ")
    now = current_champion("dynammo-skin8")
    assert now is not None and now["version"] == second
    client = MlflowClient(tracking_uri())
    assert client.get_model_version("dynammo-skin8", first).tags == {
        "gate": "passed",
        "champion_before": "null",
    }
    tags = client.get_model_version("dynammo-skin8", second).tags
    assert json.loads(tags.pop("champion_before"))["version"] == first
    assert tags == {
        "gate": "not passed: last mean class recall 30.00%, at least 50.00%",
        "gate_overruled": "seen by Dr. Weber, 3 images",
    }


def test_promoting_what_is_not_there_is_an_error(tracking: Path) -> None:
    with pytest.raises(TrackingError, match="dynammo-skin8"):
        promote("dynammo-skin8", "7", PASSED)
