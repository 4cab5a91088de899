"""The whole flow on a small experiment: what it leaves behind, and what it does not do again."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image
from safetensors.torch import load_file

from dynammo.deploy.predictor import Predictor
from tasks.support.mlflow.runs import tracking_uri
from tasks.support.workspace import CHECKPOINTS
from tests.flows.project import Project, steps

VARIANTS = ["merged", "unmerged", "frozen"]
TASKS = ["1/3", "2/3", "3/3"]
FEATURES = ["merged", "adapter"]
NAME = "dynammo-shapes"
TWO = [["amber", "birch"], ["coral", "dusk"]]  # tasks
# Quicker where only the adapters and what depends on them are looked at.
SHORT: dict[str, Any] = {"methods": ["merged"], "tracking__register_model": False}


def client() -> MlflowClient:
    return MlflowClient(tracking_uri())


def runs(experiment: str = NAME) -> list[Run]:
    found = client().get_experiment_by_name(experiment)
    return client().search_runs([found.experiment_id]) if found else []


def parent_and_children() -> tuple[Run, dict[str, Run]]:
    (parent,) = [run for run in runs() if "mlflow.parentRunId" not in run.data.tags]
    return parent, {
        run.info.run_name: run
        for run in runs()
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }


def artifacts(run: Run, folder: str) -> list[Path]:
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    return sorted((root / folder).iterdir())


def kinds(files: list[Path]) -> list[str]:
    """adapter-0123456789abcdef.safetensors -> adapter.safetensors."""
    return [re.sub(r"-[0-9a-f]{16}", "", file.name) for file in files]


def again(states: dict[str, str]) -> set[str]:
    return {name for name, state in steps(states).items() if state != "Cached"}


def test_the_first_run_does_everything(finished_once: tuple[Project, dict[str, str]]) -> None:
    _, states = finished_once
    # The bare backbone's features serve all tasks.
    reused = {f"extract test features: frozen {task}" for task in TASKS[1:]}
    # Pictures are kept under their content: another test may have kept the same ones.
    kept = {f"keep test images {task}" for task in TASKS}
    assert set(steps(states)) - again(states) - kept == reused
    expected = {
        "prepare backbone test_resnet",
        *(f"train adapter {task}" for task in TASKS),
        *(f"merge adapters {task}" for task in TASKS),
        *(f"select exemplars: merged {task}" for task in TASKS),
        *(
            f"extract training features: {name} {task}"
            for name in ("merged", "frozen")
            for task in TASKS
        ),
        *(f"update statistics: {name} {task}" for name in ("merged", "frozen") for task in TASKS),
        *(
            f"fit head: {name} {task} (discriminant)"
            for name in ("merged", "frozen")
            for task in TASKS
        ),
        *(f"fine-tune task heads: unmerged {task}" for task in TASKS),
        *(
            f"extract test features: {name} {task}"
            for name in ("merged", "adapter")
            for task in TASKS
        ),
        *(f"evaluate {name} {task}" for name in VARIANTS for task in TASKS),
        "extract test features: frozen 1/3",
    }
    assert again(states) - kept == expected


def test_the_results_folder_is_complete(finished: Project) -> None:
    assert [path.name for path in finished.results.parent.iterdir()] == ["shapes"]
    assert {path.name for path in finished.results.iterdir()} == {
        *("metrics.json", "results.json", "report.html", "table.md", "figures", "model"),
        *("curves", "predictions", "scores", "curves.csv", "per_class.csv", "confusion.csv"),
    }
    metrics, results = finished.read("metrics.json"), finished.read("results.json")
    assert sorted(metrics) == sorted(VARIANTS)
    assert [task["classes"] for task in results["tasks"]] == [
        ["amber", "birch"],
        ["coral", "dusk"],
        ["ember", "fern"],
    ]
    figures = {path.stem for path in (finished.results / "figures").iterdir()}
    assert {f"confusion_{name}" for name in VARIANTS} <= figures
    for name in VARIANTS:
        rows = list(csv.DictReader((finished.results / "predictions" / f"{name}.csv").open()))
        right = [row["actual"] == row["predicted"] for row in rows]
        assert len(right) == 24
        assert sum(right) / 24 == pytest.approx(metrics[name]["last_accuracy"])
        curve = list(csv.DictReader((finished.results / "curves" / f"{name}.csv").open()))
        assert [row["task"] for row in curve] == ["1", "2", "3"]
        accuracies = [float(row["accuracy"]) for row in curve]
        assert metrics[name]["average_accuracy"] == pytest.approx(np.mean(accuracies))
    assert metrics["unmerged"]["gmacs"] > metrics["merged"]["gmacs"] > metrics["frozen"]["gmacs"]


def test_mlflow_has_a_parent_and_comparable_children(finished: Project) -> None:
    parent, children = parent_and_children()
    assert sorted(children) == sorted(VARIANTS)
    keys = [set(run.data.metrics) for run in children.values()]
    assert keys[0] == keys[1] == keys[2]
    for name, run in children.items():
        assert run.info.status == "FINISHED"
        history = client().get_metric_history(run.info.run_id, "accuracy")
        stages = finished.read("results.json")["variants"][name]["stages"]
        assert {m.step: m.value for m in history} == {s["task"]: s["accuracy"] for s in stages}
        for number in (1, 2, 3):
            heads = kinds(artifacts(run, f"heads/task-{number:02d}"))
            one = "task-head" if name == "unmerged" else f"head-{name}"
            count = number if name == "unmerged" else 1
            assert sorted(heads) == sorted([f"{one}.safetensors", f"{one}.json"] * count)
            assert kinds(artifacts(run, f"metrics/task-{number:02d}")) == [f"metrics-{name}.json"]
            assert not (artifacts(run, "figures")[0].parents[1] / "exemplars").exists()
        assert f"confusion_{name}.png" in [path.name for path in artifacts(run, "figures")]
    for number in (1, 2, 3):
        assert kinds(artifacts(parent, f"adapters/task-{number:02d}")) == [
            *("adapter.json", "adapter.safetensors"),
            *("task-head.json", "task-head.safetensors"),
        ]
        assert kinds(artifacts(parent, f"merged/task-{number:02d}")) == [
            "merged.json",
            "merged.safetensors",
        ]
    names = ["metrics.json", "report.html", "results.json"]
    assert [path.name for path in artifacts(parent, "report")] == names


def test_the_merged_adapter_is_the_mean_of_the_adapters(finished: Project) -> None:
    parent, _ = parent_and_children()

    def load(folder: str, kind: str) -> dict[str, torch.Tensor]:
        (file,) = [f for f in artifacts(parent, folder) if re.match(rf"{kind}-\w+\.safe", f.name)]
        return load_file(file)

    adapters = [load(f"adapters/task-{number:02d}", "adapter") for number in (1, 2, 3)]
    for number in (1, 2, 3):
        merged = load(f"merged/task-{number:02d}", "merged")
        assert merged.keys() == adapters[0].keys()
        means = [name for name in merged if not re.search("running_var|num_batches", name)]
        assert len(means) > 4
        for name in means:
            mean = torch.stack([state[name].double() for state in adapters[:number]]).mean(0)
            torch.testing.assert_close(merged[name].double(), mean, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(adapters[0][n], adapters[2][n]) for n in means), "nothing learnt"


def test_every_checkpoint_says_where_it_came_from(finished: Project) -> None:
    kinds = set()
    for file in CHECKPOINTS.folder.glob("*.safetensors"):
        document = json.loads(file.with_suffix(".json").read_text())
        assert document["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert {"config", "parents", "versions"} <= document.keys(), file.name
        assert {"python", "torch", "timm"} <= document["versions"].keys()
        kinds.add(document["kind"])
    assert kinds >= {"backbone", "adapter", "task-head", "merged", "features"}
    assert kinds >= {"head-merged", "head-frozen", *(f"predictions-{name}" for name in VARIANTS)}


def test_the_model_can_be_traced_to_everything_it_came_from(finished: Project) -> None:
    todo = list(finished.read("model/model.json")["provenance"]["parents"].values())
    seen: dict[str, dict[str, Any]] = {}
    while todo:
        files = list(CHECKPOINTS.folder.glob(f"*-{todo.pop()[:16]}.json"))
        assert files
        for file in files:
            if file.name in seen or file.name.startswith("exemplars-"):
                continue
            seen[file.name] = json.loads(file.read_text())
            parents = seen[file.name]["parents"]
            linked = [parents.get(key) for key in ("backbone", "adapter", "previous", "exemplars")]
            todo += [parent for parent in (*linked, *parents.get("adapters", [])) if parent]
    found = sorted(document["kind"] for document in seen.values())
    # Merged from the first adapter alone, "merged" is a file of the same content.
    assert found == ["adapter", "adapter", "adapter", "backbone", "head-merged", "merged", "merged"]
    adapters = {d["parents"]["task"]: d for d in seen.values() if d["kind"] == "adapter"}
    assert adapters[3]["config"]["train"]["epochs"] == 2
    assert adapters[2]["parents"]["classes"] == ["coral", "dusk"]
    assert adapters[2]["parents"]["previous"] == adapters[1]["sha256"]


def test_the_champion_answers_as_the_results_say(finished: Project, pictures: Path) -> None:
    (version,) = client().search_model_versions(f"name = '{NAME}'")
    assert client().get_model_version_by_alias(NAME, "champion").version == version.version
    assert finished.read("results.json")["gate"]["passed"]
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    rows = list(csv.DictReader((finished.results / "predictions" / "merged.csv").open()))
    images = [np.asarray(Image.open(pictures / row["file"])) for row in rows]
    answers = model.predict(pd.DataFrame({"image": images}))
    assert [answer["label"] for answer in answers] == [row["predicted"] for row in rows]
    for answer, row in zip(answers, rows, strict=True):
        assert answer["probability"] == pytest.approx(float(row["confidence"]), abs=1e-4)
        assert list(answer["probabilities"]) == Predictor(finished.results / "model").classes


def test_a_second_run_does_nothing_again(finished: Project) -> None:
    before = (finished.results / "metrics.json").read_bytes()
    gate = finished.read("results.json")["gate"]
    assert again(finished.run()) == set()
    assert finished.read("results.json")["gate"] == gate  # not compared with itself
    assert (finished.results / "metrics.json").read_bytes() == before
    assert len(runs()) == 4
    assert len(client().search_model_versions(f"name = '{NAME}'")) == 1


def test_more_epochs_train_everything_again_but_the_backbone(finished: Project) -> None:
    states = steps(finished.run(train__epochs=3, output="longer", **SHORT))
    assert {n for n, s in states.items() if s == "Cached"} == {
        "prepare backbone test_resnet",
        *(f"keep test images {task}" for task in TASKS),
    }
    assert len(runs()) == 4 + 2


@pytest.mark.parametrize(
    ("change", "rule", "features"),
    [
        ({"head__shrinkage": 0.8}, "discriminant", []),
        # It needs no mirrored views, so that the features are others; what they choose is not.
        (
            {"head__rule": "fine_tune"},
            "fine_tune",
            ["extract training features: merged", "select exemplars: merged"],
        ),
    ],
)
def test_another_head_keeps_adapters_and_merges(
    finished: Project, change: dict[str, Any], rule: str, features: list[str]
) -> None:
    repeated = again(finished.run(output="another-head", **change, **SHORT))
    assert repeated == {
        *(f"{step} {task}" for step in [*features, "evaluate merged"] for task in TASKS),
        *(f"fit head: merged {task} ({rule})" for task in TASKS),
    }


def test_gate_and_output_neither_train_nor_track_anything_new(finished: Project) -> None:
    champion = client().get_model_version_by_alias(NAME, "champion").version
    before = {run.info.run_id for run in runs()}
    assert again(finished.run(gate__max_gap_to_unmerged=-1.0, output="elsewhere")) == set()
    assert {run.info.run_id for run in runs()} == before
    metrics = (finished.folder / "elsewhere" / "metrics.json").read_bytes()
    assert metrics == (finished.results / "metrics.json").read_bytes()
    results = json.loads((finished.folder / "elsewhere" / "results.json").read_text())
    assert not results["gate"]["passed"]
    assert client().get_model_version_by_alias(NAME, "champion").version == champion


def test_no_images_trains_one_adapter_and_remembers_nothing(finished: Project) -> None:
    states = finished.run(
        preset="no_images",
        methods=["merged", "frozen"],
        memory__per_class=0,
        output="no-images",
        tracking__register_model=False,
    )
    assert {name for name in states if name.startswith("train adapter")} == {"train adapter 1/3"}
    folder = finished.folder / "no-images"
    results = json.loads((folder / "results.json").read_text())
    assert [len(stage["classes"]) for stage in results["tasks"]] == [2, 2, 2]
    names = [run.info.run_name for run in runs() if "mlflow.parentRunId" not in run.data.tags]
    (parent,) = [run for run in runs() if run.info.run_name == "shapes no_images seed 3"]
    assert names.count(parent.info.run_name) == 1
    assert len(artifacts(parent, "adapters/task-01")) == 4
    assert not (artifacts(parent, "adapters/task-01")[0].parents[1] / "task-02").exists()
    child = next(
        run
        for run in runs()
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
        and run.info.run_name == "merged"
    )
    assert len(artifacts(child, "statistics/task-03")) == 2


def test_frozen_alone_trains_no_adapter_and_registers_nothing(finished: Project) -> None:
    versions = len(client().search_model_versions(f"name = '{NAME}'"))
    assert again(finished.run(methods=["frozen"], output="frozen")) == set()
    folder = finished.folder / "frozen"
    results = json.loads((folder / "results.json").read_text())
    assert list(results["summary"]) == ["frozen"]
    assert results["summary"]["frozen"] == finished.read("metrics.json")["frozen"]
    assert results["gate"] is None
    assert not (folder / "model").exists()
    assert len(client().search_model_versions(f"name = '{NAME}'")) == versions
    (child,) = [
        r
        for r in runs()
        if json.loads(r.data.params["methods"]) == ["frozen"]
        and "mlflow.parentRunId" in r.data.tags
    ]
    parent = client().get_run(child.data.tags["mlflow.parentRunId"])
    assert {info.path for info in client().list_artifacts(parent.info.run_id)} == {
        "figures",
        "report",
    }


def test_unmerged_alone_is_as_good_as_beside_merged(finished: Project) -> None:
    assert again(finished.run(methods=["unmerged"], output="unmerged")) == set()
    metrics = json.loads((finished.folder / "unmerged" / "metrics.json").read_text())
    assert metrics == {"unmerged": finished.read("metrics.json")["unmerged"]}


def test_images_of_another_size_are_tested_at_that_size(finished: Project) -> None:
    """What an earlier run has kept at another size is not taken for it."""
    new = again(finished.run(methods=["frozen"], image__size=56, output="larger"))
    assert {f"keep test images {task}" for task in TASKS} <= new
    kept = [load_file(file)["images"] for file in CHECKPOINTS.folder.glob("test-images-*.s*")]
    assert [images.shape for images in kept].count((8, 3, 56, 56)) == len(TASKS)


def test_features_of_the_last_layer_instead_of_several_levels(
    finished: Project, pictures: Path
) -> None:
    given = {**SHORT, "methods": ["merged", "frozen", "finetune"], "scenario__tasks": TWO}
    new = again(finished.run(**given, backbone__levels=None, output="last"))
    assert {"train adapter 1/2", "extract test features: frozen 1/2", "learn finetune 2/2"} <= new
    channels = (48, 192, 96)  # of test_resnet's last three stages
    before = Predictor(finished.results / "model")
    assert before.model.head.weight.shape == (6, sum(channels))  # behind ReLUs
    folder = finished.folder / "last"
    predictor = Predictor(folder / "model")
    assert predictor.model.head.weight.shape == (4, channels[-1])
    rows = list(csv.DictReader((folder / "predictions" / "merged.csv").open()))
    answers = predictor.predict([pictures / row["file"] for row in rows])
    assert [answer.label for answer in answers] == [row["predicted"] for row in rows]


def test_batch_norm_is_moved_once_for_every_method(finished: Project) -> None:
    given = {**SHORT, "methods": ["merged", "frozen", "finetune"], "scenario__tasks": TWO}
    new = again(finished.run(**given, backbone__renormalise=0.5, output="moved"))
    assert {"renormalise backbone", "train adapter 1/2", "learn finetune 2/2"} <= new
    assert "prepare backbone test_resnet" not in new
    moved = Predictor(finished.folder / "moved" / "model").model.network.backbone.state_dict()
    plain = Predictor(finished.results / "model").model.network.backbone.state_dict()
    differing = {name for name in plain if not torch.equal(moved[name], plain[name])}
    assert {"conv1.1.running_mean", "conv1.1.running_var"} <= differing
    assert "conv1.1.weight" not in differing


def test_another_experiment_trains_nothing(finished: Project) -> None:
    states = finished.run(tracking__experiment="another", output="another", **SHORT)
    assert again(states) == set()
    assert len(runs("another")) == 2


def test_an_image_of_the_last_task_keeps_the_tasks_before_it(
    finished: Project, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(pictures, tmp_path / "pictures")
    file = tmp_path / "pictures" / "train" / "ember" / "00.png"
    Image.open(file).rotate(90).save(file)
    states = finished.run(data__path=str(tmp_path / "pictures"), output="changed", **SHORT)
    expected = {name for name in steps(states) if "3/3" in name} - {"keep test images 3/3"}
    assert again(states) == expected


def test_a_failed_run_is_marked_and_logged_without_a_traceback(
    prefect_server: None, new: Project
) -> None:
    with new.entered():
        lines = new.log(train__learning_rate=1e30)
        assert {run.info.status for run in runs()} == {"FAILED"}
    reason = "the loss is nan in epoch 1: train.learning_rate 1e+30 is too high for these images"
    assert lines[-1] == f"flow: {reason}"
    assert f"Task run 'train adapter 1/3' - {reason}" in lines
    assert not [line for line in lines if "Traceback" in line]
    assert not new.results.exists()
