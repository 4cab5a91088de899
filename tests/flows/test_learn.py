"""A learner on a small experiment: batches arrive one by one, and each is deleted once learnt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image
from typer.testing import CliRunner

from dynammo.checkpoint import references_in
from dynammo.deploy.graph import load_predictor
from dynammo.deploy.predictor import Predictor
from dynammo.deploy.similar import most_alike, remember
from dynammo.errors import ConfigError, DataError
from dynammo.evaluation.metrics import mean_class_recall
from dynammo.learner.folder import LearnerError, LearnerFolder
from dynammo.reporting.change import Flip
from dynammo.reporting.heat_map import explain
from flows import learn as learn_flow
from flows.cli import app
from flows.cli.trial import trial_of
from flows.forget import forget
from flows.incremental import incremental
from flows.learn import learn
from flows.merge import merge
from flows.promote import promote
from flows.purge import purge
from flows.support import versions
from tasks import report_change
from tasks.compare_versions import Answers
from tasks.kept_pictures import kept_pictures
from tasks.publish_version import registered_versions
from tasks.purge import held
from tasks.support.mlflow.runs import tracking_uri
from tasks.support.version import Version, find_learner
from tasks.support.workspace import IMAGES, RESULTS, Context
from tests.flows.project import CLASSES, GRAPH, OVERRIDES, TASKS, apart, copier
from tests.models import reseal

pytestmark = pytest.mark.usefixtures("prefect_server")


def teach(arrive: Callable[..., Path], name: str = "shapes", **more: Any) -> LearnerFolder:
    """Learn the three tasks batch by batch, each deleted when it was learnt."""
    for number, classes in enumerate(TASKS, start=1):
        batch = arrive(f"batch{number}", classes)
        learn(name, str(batch), None, {**OVERRIDES, **more} if number == 1 else None)
        shutil.rmtree(batch)
    return find_learner(name)


@pytest.fixture(scope="module")
def taught_once(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path, migrated_database: Path
) -> Path:
    """A learner that has learnt the three tasks batch by batch, each deleted once learnt.

    Its model has a graph, as users' have.
    """
    root = tmp_path_factory.mktemp("taught")
    with apart(root, migrated_database):
        teach(copier(root, pictures), **GRAPH)
    return root / "learners"


@pytest.fixture
def taught(here: Path, taught_once: Path) -> LearnerFolder:
    """A copy of it, to change."""
    shutil.copytree(taught_once, here / "learners")
    return find_learner("shapes")


def state(document: dict[str, Any]) -> dict[str, Any]:
    """What a version has learnt, by the hashes of its tensors."""
    stage = document["stage"]
    return {
        "adapters": stage["adapted"]["adapters"],
        "merged": stage["adapted"]["merged"],
        "heads": {name: own["heads"] for name, own in stage["methods"].items()},
        "statistics": {name: own["statistics"] for name, own in stage["methods"].items()},
        "metrics": {name: own["evaluated"]["metrics"] for name, own in stage["methods"].items()},
    }


def metrics(folder: LearnerFolder, version: int, method: str = "merged") -> dict[str, Any]:
    evaluated = folder.version(version)["stage"]["methods"][method]["evaluated"]
    found: dict[str, Any] = folder.store.load_json(evaluated["metrics"])
    return found


def test_batches_deleted_once_learnt_give_what_a_run_over_all_of_them_gives(
    here: Path, taught: LearnerFolder, pictures: Path
) -> None:
    folder = taught
    overrides = {
        **OVERRIDES,
        "methods": ["merged", "frozen"],
        "data": {"name": "whole", "source": "folder", "path": str(pictures)},
        "scenario.tasks": TASKS,
        "output": str(here / "results"),
    }
    whole = incremental(None, overrides)["summary"]
    for method in ("merged", "frozen"):
        stages = json.loads((here / "results/results.json").read_text())["variants"][method][
            "stages"
        ]
        for number, expected in enumerate(stages, start=1):
            found = metrics(folder, number, method)
            # What is measured on later tasks' images, the unknowns, a learner cannot know.
            for key in (
                "accuracy",
                "mean_class_recall",
                "task_accuracy",
                "per_class",
                "confusion",
                "ece",
                "negative_flips",
            ):
                if key in expected:
                    assert found[key] == expected[key], (method, number, key)
        assert whole[method]["last_accuracy"] == metrics(folder, 3, method)["accuracy"]


def test_nothing_is_left_of_a_batch_but_what_is_kept(
    here: Path, arrive: Callable[..., Path]
) -> None:
    before = set(RESULTS.glob("*")) if RESULTS.is_dir() else set()
    images = set(IMAGES.glob("*")) if IMAGES.is_dir() else set()
    batch = arrive("batch1", TASKS[0])
    learn("shapes", str(batch), None, OVERRIDES)
    folder = find_learner("shapes")
    assert set(RESULTS.glob("*")) == before
    assert (set(IMAGES.glob("*")) if IMAGES.is_dir() else set()) == images
    assert sorted(path.name for path in folder.path.iterdir()) == [
        *("key", "learner.json", "lock", "model", "objects", "reports", "versions")
    ]
    used = {ref["path"].split(".")[0] for ref in references_in(folder.current())}
    assert {path.name.split(".")[0] for path in folder.store.folder.iterdir()} == used
    kept = {own["what"]: own["images"] for own in held(folder)}
    assert kept["exemplars"] == 8
    assert kept["test images"] == 8
    assert (folder.path / "key").stat().st_mode & 0o077 == 0


def test_further_images_of_known_classes_and_a_new_class_at_once(
    here: Path, arrive: Callable[..., Path]
) -> None:
    first = arrive("first", ["amber", "birch"], range(5))
    arrive("first", ["amber", "birch"], range(8, 10))
    learn("shapes", str(first), None, OVERRIDES)
    second = arrive("second", ["amber"], range(5, 8))
    arrive("second", ["amber"], range(10, 12))
    arrive("second", ["coral"])
    learn("shapes", str(second))
    folder = find_learner("shapes")
    current = folder.current()
    assert current["stage"]["tasks"] == [["amber", "birch"], ["coral"]]
    assert current["batches"][-1]["again"] == ["amber"]
    counts = folder.store.load(current["stage"]["methods"]["frozen"]["statistics"])["counts"]
    assert counts.tolist() == [16.0, 10.0, 16.0]  # both views of 5 + 3, 5 and 8 images
    assert metrics(folder, 2)["per_class"]["amber"]["support"] == 4
    comparison = current["comparison"]
    assert comparison["classes"]["amber"]["images"] == 4  # both versions answer the new ones, too


def test_a_batch_without_test_images_lends_some_by_group(
    here: Path, arrive: Callable[..., Path]
) -> None:
    learn("shapes", str(arrive("batch", TASKS[0], tests=False)), None, OVERRIDES)
    current = find_learner("shapes").current()
    assert (current["batches"][0]["train_images"], current["batches"][0]["test_images"]) == (12, 4)


def test_learnt_images_are_left_out_and_mixed_splits_refused(
    begun: Path, arrive: Callable[..., Path]
) -> None:
    with pytest.raises(DataError, match="all 24 images have been learnt before"):
        learn("shapes", str(begun))
    mixed = arrive("mixed", TASKS[1])
    shutil.copy2(begun / "train/amber/00.png", mixed / "test/coral/00.png")
    with pytest.raises(DataError, match="is a test image, but this image was a training image"):
        learn("shapes", str(mixed))
    (mixed / "test/coral/00.png").unlink()
    with Image.open(min((begun / "test/amber").iterdir())) as picture:
        larger = picture.resize((3 * picture.width, 3 * picture.height))
    larger.save(mixed / "train/coral/again.jpg", quality=90)
    with pytest.raises(DataError, match=r"was a test image of an earlier batch: .*again\.jpg"):
        learn("shapes", str(mixed))
    assert find_learner("shapes").numbers() == [1]


def test_a_full_memory_is_told_before_training_and_can_be_made_larger(
    begun: Path, arrive: Callable[..., Path]
) -> None:
    more, small = arrive("more", TASKS[1]), {"memory.per_class": None, "memory.size": 3}
    with pytest.raises(ConfigError, match="cannot hold one exemplar of each of 4 classes"):
        learn("shapes", str(more), None, small)
    learn("shapes", str(more), None, {**small, "memory.size": 4})
    folder = find_learner("shapes")
    memory = folder.current()["stage"]["adapted"]["exemplars"]
    assert folder.store.load(memory)["counts"].tolist() == [1, 1, 1, 1]


@pytest.mark.usefixtures("begun")
def test_what_cannot_change_is_refused(here: Path, arrive: Callable[..., Path]) -> None:
    batch = str(arrive("batch2", TASKS[1]))
    with pytest.raises(ConfigError, match=r"image\.size cannot change after the first batch"):
        learn("shapes", batch, None, {"image.size": 32})
    with pytest.raises(DataError, match="no such file or folder"):
        learn("other", "nowhere", None, OVERRIDES)
    assert not (here / "learners/other").exists()
    with pytest.raises(LearnerError, match="is no name of a learner"):
        learn("../shapes", batch)


def test_forgetting_the_last_batch_gives_the_version_before(taught: LearnerFolder) -> None:
    folder = taught
    made = forget("shapes", [3])
    assert made["version"] == folder.current()["number"] == 4
    for method in ("merged", "frozen"):
        found, expected = metrics(folder, 4, method), metrics(folder, 2, method)
        assert found["per_class"].keys() == expected["per_class"].keys()
        # merged comes back by a drift map: nearly the same answers; frozen never moved.
        assert abs(found["accuracy"] - expected["accuracy"]) <= (0.13 if method == "merged" else 0)
    old, new = (folder.version(number)["stage"] for number in (2, 4))
    assert new["adapted"]["adapters"] == old["adapted"]["adapters"]
    assert folder.store.load(new["adapted"]["merged"]).keys()
    frozen = [folder.store.load(stage["methods"]["frozen"]["statistics"]) for stage in (old, new)]
    for name in ("means", "scatter", "counts"):
        assert abs(frozen[0][name] - frozen[1][name]).max() < 1e-5 * frozen[0][name].abs().max()


def test_a_forgotten_class_can_come_back(taught: LearnerFolder) -> None:
    folder = taught
    forget("shapes", classes=["birch"])
    current = folder.current()
    assert current["stage"]["tasks"][0] == ["amber"]
    assert current["forgotten"]["classes"] == ["birch"]
    assert set(metrics(folder, 4)["per_class"]) == set(CLASSES) - {"birch"}
    assert current["gate"]["passed"]  # it was meant
    page = (folder.path / "reports/0004.html").read_text()
    assert "It can no longer name birch: such an image is called something else" in page
    taken = json.loads((folder.path / "reports/0004.json").read_text())["taken_for"]["birch"]
    assert sum(taken.values()) == metrics(folder, 3)["per_class"]["birch"]["support"]
    assert set(taken) <= set(CLASSES) - {"birch"}
    assert f"Of {sum(taken.values())} test images of birch, it takes" in page
    assert Predictor(folder.path / "model").classes == [own for own in CLASSES if own != "birch"]


def test_shares_of_some_batches_are_not_taken_for_all(
    here: Path, arrive: Callable[..., Path]
) -> None:
    """Retention kept nothing of the first batch: a class can go, a batch cannot."""
    blind = {**OVERRIDES, "memory.per_class": 0, "retention.train": "nothing"}
    learn("shapes", str(arrive("batch1", TASKS[0])), None, blind)
    learn("shapes", str(arrive("batch2", TASKS[1])), None, {"retention.train": "statistics"})
    folder = find_learner("shapes")
    parts = folder.current()["stage"]["methods"]["frozen"]["parts"]
    assert [own["batch"] for own in parts] == [2]
    with pytest.raises(LearnerError, match="own statistics were not kept"):
        forget("shapes", batches=[2])
    before = counts_of(folder, 2)
    forget("shapes", classes=["birch"])
    assert counts_of(folder, 3) == [before[0], *before[2:]]


def counts_of(folder: LearnerFolder, number: int) -> list[float]:
    """Images of each class that frozen's statistics are of."""
    statistics = folder.version(number)["stage"]["methods"]["frozen"]["statistics"]
    counts: list[float] = folder.store.load(statistics)["counts"].tolist()
    return counts


def test_adapters_are_merged_again(taught: LearnerFolder) -> None:
    folder = taught
    merge("shapes", [1, 3])
    adapted = folder.current()["stage"]["adapted"]
    assert adapted["numbers"] == [1, 3]
    assert len(folder.current()["stage"]["tasks"]) == 3
    with pytest.raises(LearnerError, match="batch 2 has no adapter; those that have: 1, 3"):
        merge("shapes", [2])


def test_the_champion_stays_where_the_gate_does_not_pass(
    here: Path, arrive: Callable[..., Path]
) -> None:
    blind = {**OVERRIDES, "retention.test": "nothing"}  # so that nothing can be compared
    learn("shapes", str(arrive("batch1", TASKS[0])), None, blind)
    assert not learn("shapes", str(arrive("batch2", TASKS[1])))["champion"]
    folder = find_learner("shapes")
    assert folder.pointer()["champion"] == 1
    with pytest.raises(LearnerError, match="did not pass the gate and needs a reason"):
        promote("shapes", 2)
    promote("shapes", 2, "the ward needs the new classes")
    assert folder.pointer()["champions"][-1]["reason"] == "the ward needs the new classes"
    assert len(Predictor(folder.path / "model").classes) == 4
    promote("shapes", 1, back=True)
    left = (folder.path / "reports/0002.html").read_text()
    assert "the ward needs the new classes. Since" in left and "version 1 is in use instead" in left
    assert folder.pointer()["current"] == folder.pointer()["champion"] == 1
    learn("shapes", str(arrive("batch3", TASKS[2])))
    assert folder.version(3)["parent"] == 1


@pytest.mark.parametrize("test", ["features", "nothing"])
def test_test_images_that_are_not_kept(here: Path, arrive: Callable[..., Path], test: str) -> None:
    folder = teach(arrive, **{"retention.test": test})
    kinds = {own["what"] for own in held(folder)}
    assert "test images" not in kinds
    last = metrics(folder, 3)
    if test == "features":
        assert last["estimated"] == sorted(CLASSES[:4])  # the newest were still there
        assert last["per_class"]["amber"]["support"] == 4
        assert "estimated" not in metrics(folder, 3, "frozen")
        assert metrics(folder, 3, "frozen")["accuracy"] > 0
    else:
        assert last["per_class"]["amber"]["recall"] is None
        failed = [c["name"] for c in folder.current()["gate"]["checks"] if not c["passed"]]
        assert "comparable" in failed
        assert "answers" not in kinds


def test_a_patient_is_removed_from_all_versions(here: Path, arrive: Callable[..., Path]) -> None:
    batch = arrive("batch1", TASKS[0])
    rows = ["file,split,class,group"]
    for file in sorted(batch.rglob("*.png")):
        split, name = file.parent.parent.name, file.parent.name
        group = f"patient-{split}-{int(file.stem) // 2}"
        rows.append(f"{file.relative_to(batch)},{split},{name},{group}")
    (batch / "manifest.csv").write_text("\n".join(rows) + "\n")
    learn("shapes", str(batch), None, OVERRIDES)
    learn("shapes", str(arrive("batch2", TASKS[1])))
    folder = find_learner("shapes")
    before = {own["what"]: own["images"] for own in held(folder)}
    assert purge("shapes", None, "patient-test-4")["removed"] == 4
    after = {own["what"]: own["images"] for own in held(folder)}
    assert after["keyed hashes"] < before["keyed hashes"]
    assert purge("shapes", None, "patient-test-4")["removed"] == 0
    purge("shapes")
    assert {own["images"] for own in held(folder) if "images" in own["what"]} <= {0}
    learn("shapes", str(arrive("batch3", TASKS[2])))  # goes on without any memory
    assert len(folder.current()["stage"]["tasks"]) == 3
    failed = [c["name"] for c in folder.current()["gate"]["checks"] if not c["passed"]]
    assert "comparable" in failed  # no image is left to compare on


def test_a_learner_goes_on_from_the_registry_alone(
    here: Path, arrive: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**OVERRIDES, "tracking.register_model": True}
    learn("shapes", str(arrive("batch1", TASKS[0])), None, settings)
    monkeypatch.setenv("DYNAMMO_LEARNERS", str(here / "elsewhere"))
    made = learn("models:/dynammo-shapes@champion", str(arrive("batch2", TASKS[1])))
    assert made["version"] == 2
    there = find_learner("shapes")
    monkeypatch.setenv("DYNAMMO_LEARNERS", str(here / "learners"))
    learn("shapes", str(here / "batch2"))
    assert state(find_learner("shapes").current()) == state(there.current())
    client = MlflowClient(tracking_uri())
    assert client.get_model_version_by_alias("dynammo-shapes", "champion").version


def test_a_learner_goes_on_beside_another_mlflow(
    here: Path,
    arrive: Callable[..., Path],
    migrated_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Which holds a model of the same name, of another learner: no version is taken for it."""
    settings = {**OVERRIDES, "tracking.register_model": True}
    batches = [str(arrive(f"batch{n}", names)) for n, names in enumerate(TASKS[:2], start=1)]
    learn("shapes", batches[0], None, settings)
    folder = find_learner("shapes")
    shutil.copy(migrated_database, here / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here / 'other.db'}")
    client, model = MlflowClient(tracking_uri()), "dynammo-shapes"
    other = client.create_run(client.create_experiment("other")).info.run_id
    client.create_registered_model(model)
    client.create_model_version(model, str(here), run_id=other)

    stays = {**settings, "gate.by_hand": True}  # so the champion stays the first
    learn("shapes", batches[1], None, stays)
    assert "version 1 was registered in another MLflow" in caplog.text
    assert registered_versions(folder) == {1: "2", 2: "3"}
    assert str(client.get_model_version_by_alias(model, "champion").version) == "2"
    assert "gate" not in client.get_model_version(model, "1").tags

    # Back beside the first, images are removed from what was registered there then, too.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here / 'mlflow.db'}")
    assert registered_versions(folder) == {}
    assert purge("shapes")["removed"] > 0
    client = MlflowClient(tracking_uri())
    first = Path(str(client.get_model_version(model, "1").source).removeprefix("file://"))
    assert (first / "artifacts/model").is_dir() and not (first / "artifacts/learner").exists()


def test_a_killed_step_is_gone_on_with(
    here: Path, arrive: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = str(arrive("batch1", TASKS[0]))

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(BaseException):  # noqa: B017
        patch.setattr(learn_flow, "write_version", die)
        learn("shapes", batch, None, OVERRIDES)
    folder = find_learner("shapes")
    assert not folder.exists
    files = {path.name: path.stat().st_mtime_ns for path in folder.store.folder.glob("adapter-*")}
    assert files
    learn("shapes", batch, None, OVERRIDES)
    again = {path.name: path.stat().st_mtime_ns for path in folder.store.folder.glob("adapter-*")}
    assert again == files  # not trained again
    assert not folder.work.exists()


@pytest.mark.usefixtures("begun")
def test_a_step_killed_when_its_version_was_written_is_finished(
    arrive: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command answers as if nobody had killed it, and makes no second version."""
    folder = find_learner("shapes")
    batch = str(arrive("batch2", TASKS[1]))

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    steps: list[Callable[[], Any]] = [
        lambda: learn("shapes", batch),
        lambda: forget("shapes", batches=[2]),
    ]
    for number, step in enumerate(steps, start=2):
        report = folder.path / "reports" / f"{number:04}.html"
        with monkeypatch.context() as patch, pytest.raises(BaseException):  # noqa: B017
            patch.setattr(versions, "write_change_report", die)
            step()
        assert folder.pointer()["current"] == number
        assert folder.work.exists() and not report.exists()
        made = step()
        assert made["version"] == folder.pointer()["current"] == number
        assert made["champion"] == folder.version(number)["gate"]["passed"]
        assert report.is_file() and not folder.work.exists()
    with pytest.raises(LearnerError, match="has no batch 2"):
        forget("shapes", batches=[2])


def test_no_image_waits_for_a_version_to_be_shown(
    here: Path, arrive: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as while MLflow cannot be reached; the same command then shows it."""
    batch = str(arrive("batch1", TASKS[0]))

    def unreachable(*_: Any) -> None:
        raise ConnectionError

    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(versions, "show_version", unreachable)
        learn("shapes", batch, None, OVERRIDES)
    folder = find_learner("shapes")
    assert [path.name for path in folder.work.iterdir()] == ["step.json"]
    assert not (folder.path / "model").exists()
    assert learn("shapes", batch)["version"] == folder.pointer()["current"] == 1
    assert (folder.path / "model" / "model.json").is_file() and not folder.work.exists()


@pytest.mark.usefixtures("begun")
def test_a_damaged_learner_is_refused(here: Path, arrive: Callable[..., Path]) -> None:
    folder = find_learner("shapes")
    (file,) = folder.store.folder.glob("merged-*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(LearnerError, match="missing or damaged"):
        learn("shapes", str(arrive("batch2", TASKS[1])))
    with folder.lock(), pytest.raises(LearnerError, match="is being changed by process"):
        learn("shapes", str(here / "batch2"))


def test_what_a_learner_keeps_makes_and_judges_its_int8_graph(taught: LearnerFolder) -> None:
    model = taught.path / "model"
    made_on, judged_on = trial_of(taught.path, None)
    predictor = load_predictor(model)
    kept = taught.current()["stage"]["methods"]["merged"]["exemplars"]
    memory = taught.store.load(kept)
    assert made_on.images.tolist() == memory["images"].tolist()
    assert np.bincount(made_on.targets).tolist() == memory["counts"].tolist()
    answers = predictor.scores(judged_on.images.transpose(0, 2, 3, 1)).argmax(1)
    recall = mean_class_recall(judged_on.targets, answers, len(predictor.classes))
    assert recall == pytest.approx(metrics(taught, 3)["mean_class_recall"])
    assert trial_of(model, None).judged_on.names == judged_on.names


def test_the_remembered_pictures_most_like_an_image_are_shown(
    taught: LearnerFolder, here: Path
) -> None:
    pictures, labels = kept_pictures(taught, taught.path / "model")
    predictor = load_predictor(taught.path / "model", "torch")
    assert isinstance(predictor, Predictor)
    assert labels == [name for name in CLASSES for _ in range(4)]
    alike = most_alike(predictor, pictures[5], remember(predictor, pictures, labels))
    assert alike[0].label == labels[5] and alike[0].likeness == pytest.approx(1)
    assert (alike[0].picture == pictures[5]).all()
    assert len(alike) == 3 and alike[1].likeness >= alike[2].likeness

    Image.fromarray(pictures[5]).save(here / "seen.png")
    model = taught.path / "model"
    said = ["explain", "seen.png", "-m", str(model), "--similar", "shapes", "-o"]
    assert CliRunner().invoke(app, [*said, "maps"]).exit_code == 0
    drawn = Image.open(here / "maps" / "seen-heat-map.png")
    assert drawn.height > 0.9 * drawn.width  # a second row; without it about half
    figure, shown = explain(predictor, pictures[5], None, remember(predictor, pictures, labels))
    below = [axes.get_title() for axes in figure.subfigs[1].axes]
    assert below[0] == f"{labels[5]}, likeness 1.00" and len(below) == 3
    assert shown in CLASSES
    inside = CliRunner().invoke(app, [*said, str(taught.path / "maps")])
    assert inside.exit_code == 1 and "outside the learner's folder only" in inside.stderr
    study = CliRunner().invoke(app, [*said, "maps", "--dicom"])
    assert study.exit_code == 1 and "other patients" in study.stderr

    shutil.copytree(taught.path, here / "learners" / "other")
    reseal(model, {"provenance": {"learner": {"name": "shapes", "version": 3}, "parents": {}}})
    with pytest.raises(ConfigError, match="holds no model of the learner other"):
        kept_pictures(find_learner("other"), model)
    purge("shapes")
    with pytest.raises(ConfigError, match="keeps no picture"):
        kept_pictures(taught, here / "learners" / "other" / "model")


def test_pictures_of_what_became_wrong_or_right(
    taught: LearnerFolder, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both versions' answers, made up here: the first image was wrong, the second is."""
    real = report_change.answers_of

    def answers(version: Version, context: Context) -> dict[int, Answers]:
        found = {}
        for batch, own in real(version, context).items():
            told = [*own.actual]
            told[0 if version["parent"] == 0 else 1] = "coral"
            found[batch] = own._replace(predicted=told)
        return found

    shown: list[Flip] = []
    monkeypatch.setattr(report_change, "answers_of", answers)
    monkeypatch.setattr(report_change, "write_change", lambda _, html, flips: shown.extend(flips))
    report_change.write_change_report(taught, 2, here / "out.html", pictures=True)
    assert [(own["actual"], own["before"], own["now"]) for own in shown] == [
        ("amber", "coral", "amber"),
        ("amber", "amber", "coral"),
    ]
    assert all(own["png"].startswith(b"\x89PNG") for own in shown)
