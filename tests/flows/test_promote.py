"""A version that passed waits for a person, who signs with it what is in use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from fastapi.testclient import TestClient
from mlflow import MlflowClient
from typer.testing import CliRunner

from dynammo.deploy.signature import new_key
from flows.cli import app
from flows.learn import learn
from flows.page import view
from flows.page.app import COOKIE, make_app
from flows.watch import watch
from tasks.sign_learner import check_signed
from tasks.support.mlflow.runs import tracking_uri
from tasks.support.version import by_hand, config_of, find_learner, read_version
from tests.flows.project import OVERRIDES, TASKS

pytestmark = pytest.mark.usefixtures("prefect_server")
BY_HAND = {**OVERRIDES, "gate": {**OVERRIDES["gate"], "by_hand": True}}
WAITS = "waits for a person"


def dynammo(*arguments: str | Path, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return " ".join(result.output.split())


def test_a_version_waits_and_is_signed_by_who_promotes_it(
    here: Path, arrive: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def aliases() -> dict[str, str]:
        model = MlflowClient(tracking_uri()).get_registered_model("dynammo-shapes")
        return {name: str(number) for name, number in model.aliases.items()}

    made = learn(
        "shapes",
        str(arrive("batch1", TASKS[0])),
        None,
        {**BY_HAND, "tracking.register_model": True},
    )
    assert (made["champion"], made["waits"], made["outcome"]) == (False, True, "passed")
    folder = find_learner("shapes")
    report = folder.path / "reports/0001.html"
    assert folder.current()["waits"] and folder.pointer()["champion"] == 0
    assert aliases() == {} and not (folder.path / "model").exists()
    assert WAITS in report.read_text()
    assert view.timeline(folder)[0].marks == ["current", WAITS]
    with TestClient(make_app("shapes", "t"), cookies={COOKIE: "t"}) as client:
        asked = client.post("/learners/shapes/change/learn", data={"batch": "batch1"}).text
        assert "its next version, which waits for a person if it passes its gate" in asked

    # Nothing moves where the key cannot sign, or is another than the one that is asked for.
    new_key(here / "key")
    new_key(here / "other")
    monkeypatch.setenv("DYNAMMO_PUBLIC_KEY", str(here / "key.pub"))
    promote = ("promote", "shapes", "1")
    for key, why in (("none", "cannot read the key"), ("other", "other is not that of")):
        assert why in dynammo(*promote, "--key", here / key, status=1)
    assert "version 1 is not signed" in dynammo(*promote, status=1)
    assert folder.pointer()["champions"] == []

    # No reason is needed, and the same command signs: the model answers, and learning goes on.
    dynammo(*promote, "--key", here / "key")
    assert (folder.pointer()["champion"], aliases()) == (1, {"champion": "1"})
    assert WAITS not in report.read_text() and "<dt>in use</dt>" in report.read_text()
    dynammo("predict", "--model", folder.path / "model", here / "batch1", "-o", here / "a.csv")
    check_signed(folder, None)

    dynammo("rollback", "shapes", "1", "--key", here / "key")
    check_signed(folder, None)


def test_updates_in_the_plan_wait_until_the_setting_is_switched_off(
    here: Path, arrive: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("flows.watch.tell", lambda title, text: told.append(text))
    arrive("inbox/1", [*TASKS[0], "coral"], {0, 1, 2, 3, 8, 9})
    watch("shapes", str(here / "inbox"), 0, BY_HAND)
    assert told == ["passed; champion once somebody runs: dynammo promote shapes 1"]
    dynammo("promote", "shapes", "1")
    folder, file = find_learner("shapes"), here / "plan.yaml"
    values = yaml.safe_load(draft_of_a_plan())
    values["modifications"] = ["forget", "retrain_same_classes"]
    file.write_text(yaml.safe_dump({**values, "limits": {}}))
    new_key(here / "key")
    assert "cannot read the key" in dynammo("plan", "shapes", file, "-k", here / "none", status=1)
    assert folder.pointer()["plans"] == []
    dynammo("plan", "shapes", file, "--key", here / "key")
    check_signed(folder, str(here / "key.pub"))

    passed = dynammo("forget", "shapes", "--class", "coral")
    assert "passed; champion once somebody runs: dynammo promote shapes 2" in passed
    assert "version 2 is in the plan and passed" in passed
    # Who learns cannot switch it off alone: that waits for a person, and is in the plan, too.
    off = ("--set", "gate.by_hand=false")
    passed = dynammo("learn", "shapes", arrive("more", TASKS[0], {4, 5, 10}), *off)
    assert "dynammo promote shapes 3" in passed and "version 3 is in the plan and passed" in passed
    assert [entry.marks for entry in view.timeline(folder)[:2]] == [["current", WAITS], [WAITS]]
    assert folder.pointer()["champion"] == 1 and by_hand(folder, config_of(read_version(folder)))
    dynammo("promote", "shapes", "3")
    assert view.timeline(folder)[0].marks == ["champion", "current"]
    assert view.timeline(folder)[1].marks == []
    assert not by_hand(folder, config_of(read_version(folder)))


def draft_of_a_plan() -> str:
    return CliRunner().invoke(app, ["plan", "shapes", "--draft"]).output
