"""A plan in force: each update is judged by it, and a report is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dynammo.errors import ConfigError, DataError
from dynammo.learner.folder import LearnerError, LearnerFolder
from flows.cli import app
from flows.cli.learner import FAILED, OUTSIDE
from flows.learn import learn
from tasks.publish_version import pack
from tasks.support.plans import plan_of, set_plan
from tasks.support.version import find_learner
from tests.flows.project import OVERRIDES, TASKS

pytestmark = pytest.mark.usefixtures("prefect_server")


def dynammo(*arguments: str | Path, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return result.output


def report(folder: LearnerFolder, number: int) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder.path / f"reports/{number:04d}.json").read_text())
    return found


def test_updates_are_judged_by_the_plan(here: Path, arrive: Callable[..., Path]) -> None:
    learn("shapes", str(arrive("batch1", TASKS[0])), None, OVERRIDES)
    folder = find_learner("shapes")
    first = folder.current()
    assert first["judgement"]["outcome"] == "passed" and first["judgement"]["plan"] is None
    assert "no plan" in dynammo("plan", "shapes")
    file = here / "plan.yaml"

    # A draft is a plan for the champion; what does not fit it is refused, and changes nothing.
    file.write_text(dynammo("plan", "shapes", "--draft"))
    values = yaml.safe_load(file.read_text())
    wrong = {**values, "authorised": ["amber"], "locked_test": "0" * 64}
    (here / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    with pytest.raises(ConfigError) as caught:
        set_plan(folder, here / "wrong.yaml")
    assert len(caught.value.problems) == 2 and values["locked_test"] in str(caught.value)
    assert plan_of(folder) is None

    # In the plan, which asks for more images of the new classes than came, and for little else.
    values["named"] = [{"name": name, "images": 9} for name in TASKS[1]]
    values["modifications"] = ["add_named_class"]
    values["limits"] = {"non_inferiority": {"authorised": {"mean": 1}}}
    file.write_text(yaml.safe_dump(values))
    assert "version 1 is authorised" in dynammo("plan", "shapes", file)
    told = dynammo("learn", "shapes", arrive("batch2", TASKS[1]), status=FAILED)
    assert "version 2 is in the plan and failed" in told
    second = folder.current()
    assert folder.pointer()["champion"] == 1
    judgement = second["judgement"]
    assert judgement["plan"] == folder.pointer()["plans"][0]["plan"]
    verdicts = {row["name"]: row["verdict"] for row in judgement["requirements"]}
    assert {name for name, own in verdicts.items() if own == "not met"} == {
        f"data.{name}" for name in TASKS[1]
    }
    assert verdicts["locked_test"] == verdicts["non_inferiority.authorised.mean"] == "met"
    assert report(folder, 2)["judgement"] == judgement
    assert report(folder, 2)["rollback"] == 1

    # Forgetting is not among what the plan allows.
    told = dynammo("forget", "shapes", "--class", "coral", status=OUTSIDE)
    assert "modification forget is not among those allowed: add_named_class" in told
    assert folder.current()["judgement"]["outcome"] == "outside"
    assert "the plan" in dynammo("history", "shapes")  # outside it; a narrow table breaks lines

    # What was never champion is none by going back to it either.
    assert "needs a reason" in dynammo("rollback", "shapes", "2", status=1)
    assert folder.pointer()["champion"] == 1

    # Under a plan that asks for no more than came, the same batch passes.
    dynammo("rollback", "shapes", "1")
    values["named"] = [{"name": name, "images": 8, "patients": 12} for name in TASKS[1]]
    file.write_text(yaml.safe_dump(values))
    dynammo("plan", "shapes", file)
    told = dynammo("learn", "shapes", here / "batch2")
    assert "version 4 is in the plan and passed" in told
    assert folder.pointer()["champion"] == 4
    assert [step["version"] for step in folder.current()["steps"]] == [1, 4]

    # The card has the plan, the published model and how the version came about.
    card = dynammo("card", "shapes")
    assert f"Plan, SHA-256 `{folder.pointer()['plans'][-1]['plan']['sha256']}`" in card
    model = hashlib.sha256((folder.path / "model" / "model.json").read_bytes()).hexdigest()
    assert model in card and model not in dynammo("card", "shapes", "1")
    changes = card.partition("## 6. Changes")[2].partition("##")[0]
    assert [row.split(" | ")[0] for row in changes.splitlines()[4:] if row] == ["| 1", "| 4"]

    # The plans, and what they authorise, go where the learner goes.
    pack(folder, 4, here / "copy")
    copy = LearnerFolder(here, "copy")
    assert copy.problems() == [] and plan_of(copy) == plan_of(folder)
    assert copy.version(1) == folder.version(1)
    plan = folder.store.path(folder.pointer()["plans"][-1]["plan"])
    plan.write_bytes(plan.read_bytes().replace(b"12", b"11"))
    with pytest.raises(LearnerError, match=r"plan-.* is missing or damaged"):
        learn("shapes", str(arrive("batch3", TASKS[2])))


def test_forgetting_under_a_locked_test_set(here: Path, arrive: Callable[..., Path]) -> None:
    """What is left of it is measured."""
    learn("shapes", str(arrive("batch1", TASKS[0])), None, OVERRIDES)
    learn("shapes", str(arrive("batch2", TASKS[1], {0, 1, 2, 3, 4, 5, 8, 9})), None, {})
    folder, file = find_learner("shapes"), here / "plan.yaml"
    values = yaml.safe_load(dynammo("plan", "shapes", "--draft"))
    values["modifications"] = ["forget", "retrain_same_classes"]
    values["limits"] = {"non_inferiority": {"authorised": {"mean": 1}}}
    file.write_text(yaml.safe_dump(values))
    dynammo("plan", "shapes", file)

    def locked() -> dict[str, object]:
        rows = folder.current()["judgement"]["requirements"]
        return next(row for row in rows if row["name"] == "locked_test")

    assert "in the plan and passed" in dynammo("forget", "shapes", "--class", "coral")
    assert locked()["verdict"] == "met" and "forgotten on purpose" in str(locked()["detail"])
    assert "in the plan and passed" in dynammo("forget", "shapes", "--tasks", "1")
    assert locked()["verdict"] == "met"
    # The class that is left comes again: it is still the rest of that test set that is locked.
    assert "in the plan and passed" in dynammo(
        "learn", "shapes", arrive("more", ["dusk"], {6, 7, 10, 11})
    )
    assert locked()["verdict"] == "met"


def test_what_is_said_about_a_batch(here: Path, arrive: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"modification 'forget': expected new_site"):
        learn("shapes", str(arrive("batch1", TASKS[0])), None, OVERRIDES, ["forget"])
    learn("shapes", str(here / "batch1"), None, OVERRIDES, ["new_site", "new_site"])
    folder = find_learner("shapes")
    assert folder.current()["steps"] == [
        {
            "version": 1,
            "parent": 0,
            "modifications": ["add_named_class", "new_site"],
            "new": {name: {"images": 8, "test_images": 4, "patients": 12} for name in TASKS[0]},
        }
    ]
    page = folder.path / "reports/0001.html"
    before = page.read_bytes()
    page.unlink()
    dynammo("report", "shapes")
    assert page.read_bytes() == before
    inside = dynammo("report", "shapes", "--pictures", "-o", page, status=1)
    assert "outside the learner's folder" in inside


def test_subgroups_are_kept_compared_and_forgotten(here: Path, arrive: Callable[..., Path]) -> None:
    def listed(name: str, classes: list[str], sex: str = "fm") -> Path:
        files = sorted(arrive(name, classes).rglob("*.png"))
        lines = [
            f"{file.relative_to(here)},{file.parent.name},{sex[number % len(sex)]}"
            for number, file in enumerate(files)
        ]
        target = here / f"{name}.csv"
        target.write_text("\n".join(["file,class,sex", *lines]))
        return target

    settings = {**OVERRIDES, "retention.subgroups": ["sex"]}
    with pytest.raises(DataError, match=r"batch0 is a folder, and the learner asks for sex"):
        learn("shapes", str(arrive("batch0", TASKS[0])), None, settings)
    learn("shapes", str(listed("batch1", TASKS[0])), None, settings)
    folder = find_learner("shapes")
    gaps = folder.current()["judgement"]["subgroups"]["sex"]
    tests = sum(batch["test_images"] for batch in folder.current()["batches"])
    assert set(gaps) == {"f", "m"} and gaps["f"]["images"] + gaps["m"]["images"] == tests
    file, values = here / "plan.yaml", yaml.safe_load(dynammo("plan", "shapes", "--draft"))
    values["modifications"] = ["add_named_class", "forget"]
    values["named"] = [{"name": name} for name in TASKS[1]]
    values["limits"] = {"subgroups": [{"column": "site", "gap": 1}]}
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"'site' is not kept .* \(retention\.subgroups: sex\)"):
        set_plan(folder, file)
    values["limits"] = {"subgroups": [{"column": "sex", "gap": 1, "images": 2}]}
    file.write_text(yaml.safe_dump(values))
    dynammo("plan", "shapes", file)
    dynammo("learn", "shapes", listed("batch2", TASKS[1], "fmf"))
    verdicts = {
        row["name"]: row["verdict"] for row in folder.current()["judgement"]["requirements"]
    }
    assert verdicts["subgroup.sex.f"] == verdicts["subgroup.sex.m"] == "met"
    assert "<h2>By sex</h2>" in (folder.path / "reports/0002.html").read_text()
    dynammo("forget", "shapes", "--class", TASKS[0][0])
    gaps = folder.current()["judgement"]["subgroups"]["sex"]
    left = sum(
        len(folder.store.load(own["kept"]["labels"])["labels"]) for own in folder.current()["tests"]
    )
    assert gaps["f"]["images"] + gaps["m"]["images"] == left
