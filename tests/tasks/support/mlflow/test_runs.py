from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from dynammo.config import Config, load_config
from tasks.support.mlflow.runs import (
    Runs,
    TrackingError,
    compare_url,
    finish_runs,
    log_files,
    log_stage,
    log_summary,
    log_training_curve,
    open_runs,
    run_url,
    tracking_uri,
)

VARIANTS = ["merged", "unmerged", "frozen"]
DATA = {
    "hash": "0123456789abcdef" * 4,
    "train_images": 30,
    "test_images": 12,
    "tasks": [{"number": 1}, {"number": 2}],
    "dvc": {"tracked": True, "md5": "d41d8.dir"},
}
CONFIG = load_config(None, {"data.name": "skin8", "seed": 42})


def stage(task: int, accuracy: float) -> dict[str, Any]:
    """A metrics document as `dynammo.evaluation.metrics` writes it."""
    return {
        "task": task,
        "accuracy": accuracy,
        "mean_class_recall": accuracy / 2,
        "task_accuracy": [accuracy] * task,
        "task_mean_class_recall": [accuracy / 2] * task,
        "negative_flips": None if task == 1 else 0.1,
        "ece": 0.05,
        "open_set_auroc": 0.7,
        "open_set_fpr95": None,
        "per_class": {
            "mel": {"recall": accuracy, "precision": 0.5, "auroc": 0.9, "support": 6},
            "nv": {"recall": None, "precision": 0.5, "auroc": None, "support": 0},
        },
        "confusion": [[1, 2], [3, 4]],
        "gmacs": 0.4,
        "parameters": 3_000_000,
    }


def client() -> MlflowClient:
    return MlflowClient(tracking_uri())


def start(run_key: str = "key-1", config: Config = CONFIG) -> Runs:
    return open_runs(config, run_key, DATA, VARIANTS, {"code_version": "c0de"})


def curve(run_id: str, key: str) -> dict[int, float]:
    history = client().get_metric_history(run_id, key)
    points = {metric.step: metric.value for metric in history}
    assert len(points) == len(history), f"{key} has several points at one step"
    return points


def everything(runs: Runs) -> list[Run]:
    return [client().get_run(run) for run in (runs["parent"], *runs["children"].values())]


def test_one_parent_and_a_child_for_each_variant(tracking: Path) -> None:
    runs = start()
    parent = client().get_run(runs["parent"])
    assert parent.info.run_name == "skin8 best seed 42"
    assert client().get_experiment(runs["experiment_id"]).name == "dynammo-skin8"
    children = client().search_runs(
        [runs["experiment_id"]], f"tags.mlflow.parentRunId = '{runs['parent']}'"
    )
    assert {run.info.run_name: run.info.run_id for run in children} == runs["children"]
    assert {run.info.status for run in [parent, *children]} == {"RUNNING"}


def test_the_parents_note_links_to_the_childrens_curves(tracking: Path) -> None:
    runs = start()
    note = client().get_run(runs["parent"]).data.tags["mlflow.note.content"]
    assert "](#/metric?runs=" in note
    assert all(run in note for run in runs["children"].values())


def test_every_run_says_what_it_was_made_from(tracking: Path) -> None:
    for run in everything(start()):
        assert run.data.params["train.epochs"] == "8"
        assert run.data.params["memory.per_class"] == "null"
        assert run.data.params["adapter.options"] == "{}"
        assert run.data.tags["dynammo.data_hash"] == DATA["hash"]
        assert run.data.tags["dvc.md5"] == "d41d8.dir"
        assert run.data.tags["code_version"] == "c0de"
        assert run.data.tags["mlflow.note.content"]
        (recorded,) = run.inputs.dataset_inputs
        assert recorded.dataset.name == "skin8"
        assert recorded.dataset.digest == str(DATA["hash"])[:36]
        assert json.loads(recorded.dataset.source) == {"uri": "data/digits"}
        assert json.loads(recorded.dataset.profile)["train_images"] == 30


def test_curves_of_all_variants_have_the_same_keys_and_steps(tracking: Path) -> None:
    runs = start()
    for number, run in enumerate(runs["children"].values(), start=1):
        for task in (1, 2):
            log_stage(run, task, stage(task, accuracy=number / 4))
    keys = {frozenset(client().get_run(run).data.metrics) for run in runs["children"].values()}
    assert keys == {
        frozenset(
            {
                "accuracy", "mean_class_recall", "negative_flips", "ece", "open_set_auroc",
                "gmacs", "parameters", "accuracy_task_01", "accuracy_task_02", "recall/mel",
            }
        )
    }  # fmt: skip
    assert curve(runs["children"]["unmerged"], "accuracy") == {1: 0.5, 2: 0.5}
    assert curve(runs["children"]["unmerged"], "accuracy_task_02") == {2: 0.5}
    assert curve(runs["children"]["unmerged"], "negative_flips") == {2: 0.1}


def test_groups_of_classes_have_curves_of_their_own(tracking: Path) -> None:
    run = start()["children"]["merged"]
    group = {"recall": 0.75, "support": 4, "classes": ["mel", "bcc"]}
    found = {"hierarchical_cost": 0.25, "per_group": {"malignant": group, "a/b": group}}
    log_stage(run, 1, {**stage(1, accuracy=0.5), **found})
    metrics = client().get_run(run).data.metrics
    assert (metrics["hierarchical_cost"], metrics["recall/group/malignant"]) == (0.25, 0.75)
    assert [key for key in metrics if key.startswith("recall/group/a_b_")]
    # A class may be called anything; what a file says is one parameter.
    file = {"file": "p.csv", "sha256": "0" * 64, "content": {"mel (in situ)": "malignant"}}
    runs = open_runs(load_config(None, {"classes.parents": file}), "another", DATA, ["merged"])
    params = client().get_run(runs["parent"]).data.params
    assert json.loads(params["classes.parents"]) == file


def test_doing_everything_twice_records_it_once(tracking: Path, tmp_path: Path) -> None:
    picture = tmp_path / "curves.png"
    picture.write_bytes(b"picture")

    def pipeline() -> Runs:
        runs = start()
        for task in (1, 2):
            log_training_curve(runs["parent"], task, [(2.0, 0.25), (1.0, 0.5)])
            for run in runs["children"].values():
                log_stage(run, task, stage(task, accuracy=1 / task))
        for run in runs["children"].values():
            log_summary(run, {"average_accuracy": 0.75, "forgetting_accuracy": None, "gmacs": 0.4})
        log_files(runs["parent"], [picture], "figures")
        finish_runs(runs)
        return runs

    runs = pipeline()
    before = [run.to_dictionary() for run in everything(runs)]
    assert pipeline() == runs
    assert [run.to_dictionary() for run in everything(runs)] == before
    assert len(client().search_runs([runs["experiment_id"]], run_view_type=ViewType.ALL)) == 4
    for run in runs["children"].values():
        assert curve(run, "accuracy") == {1: 1.0, 2: 0.5}
        assert curve(run, "average_accuracy") == {0: 0.75}
        assert curve(run, "gmacs") == {1: 0.4, 2: 0.4}
    assert curve(runs["parent"], "train_loss_task_02") == {1: 2.0, 2: 1.0}
    assert curve(runs["parent"], "train_accuracy_task_01") == {1: 0.25, 2: 0.5}
    assert [file.path for file in client().list_artifacts(runs["parent"], "figures")] == [
        "figures/curves.png"
    ]


def test_a_resumed_stage_adds_only_what_is_missing(tracking: Path) -> None:
    run = start()["children"]["merged"]
    log_stage(run, 1, {"accuracy": 0.5})
    log_stage(run, 1, stage(1, accuracy=0.5))
    assert curve(run, "accuracy") == {1: 0.5}
    assert curve(run, "ece") == {1: 0.05}


def test_a_changed_file_replaces_the_artifact(tracking: Path, tmp_path: Path) -> None:
    run, file = start()["parent"], tmp_path / "report.html"
    for text in ("first", "second version"):
        file.write_text(text)
        log_files(run, [file])
    assert Path(client().download_artifacts(run, "report.html")).read_text() == "second version"


def test_another_execution_gets_other_runs(tracking: Path) -> None:
    first, second = start("key-1"), start("key-2")
    assert first["experiment_id"] == second["experiment_id"]
    assert not {first["parent"], *first["children"].values()} & {
        second["parent"],
        *second["children"].values(),
    }


def test_a_failed_run_goes_on_and_a_finished_one_stays_as_it_is(tracking: Path) -> None:
    runs = start()
    finish_runs(runs, "FAILED")
    assert {run.info.status for run in everything(runs)} == {"FAILED"}
    assert start() == runs
    assert {run.info.status for run in everything(runs)} == {"RUNNING"}
    finish_runs(runs)
    ends = [(run.info.status, run.info.end_time) for run in everything(runs)]
    time.sleep(0.01)
    finish_runs(start())
    assert [(run.info.status, run.info.end_time) for run in everything(runs)] == ends
    assert {status for status, _ in ends} == {"FINISHED"}


def test_deleted_runs_and_experiments_are_restored(tracking: Path) -> None:
    runs = start()
    log_stage(runs["children"]["merged"], 1, stage(1, accuracy=0.5))
    client().delete_run(runs["children"]["merged"])
    assert start() == runs
    client().delete_experiment(runs["experiment_id"])
    assert start() == runs
    assert {run.info.lifecycle_stage for run in everything(runs)} == {"active"}
    assert curve(runs["children"]["merged"], "accuracy") == {1: 0.5}


def test_runs_gone_for_good_are_made_anew(tracking: Path) -> None:
    runs = start()
    client().delete_run(runs["parent"])
    client()._tracking_client.store._hard_delete_run(runs["parent"])  # as `mlflow gc` does
    again = start()
    assert again["parent"] != runs["parent"]
    assert again["children"] == runs["children"]
    for run in again["children"].values():
        assert client().get_run(run).data.tags["mlflow.parentRunId"] == again["parent"]


def test_what_a_user_wrote_in_the_description_is_kept(tracking: Path) -> None:
    runs = start()
    client().set_tag(runs["parent"], "mlflow.note.content", "my notes")
    start()
    assert client().get_run(runs["parent"]).data.tags["mlflow.note.content"] == "my notes"


def test_a_setting_outside_the_key_may_change(tracking: Path) -> None:
    runs = start()
    changed = load_config(None, {"data.name": "skin8", "seed": 42, "device": "cpu"})
    assert start(config=changed) == runs
    assert client().get_run(runs["parent"]).data.params["device"] == "auto"


def test_long_settings_are_cut(tracking: Path) -> None:
    order = [f"a class with a long name {number}" for number in range(500)]
    scenario = {"class_order": order, "classes_per_task": 2}
    config = load_config(None, {"data.name": "skin8", "scenario": scenario})
    param = client().get_run(start(config=config)["parent"]).data.params["scenario.class_order"]
    assert len(param) == 6000
    assert param.startswith('["a class with a long name 0"')
    assert param.endswith("...")


def test_any_class_name_makes_a_key_of_its_own(tracking: Path) -> None:
    names = ["a/b", "a_b", "a:b", "..", ".", "naevus, benign (é)", "x" * 300, "plain"]
    run = start()["children"]["merged"]
    recalls = {name: {"recall": number / 10} for number, name in enumerate(names)}
    log_stage(run, 1, {"per_class": recalls})
    logged = client().get_run(run).data.metrics
    assert sorted(logged.values()) == sorted(metrics["recall"] for metrics in recalls.values())
    assert logged["recall/plain"] == 0.7
    assert logged["recall/a_b"] == 0.1


def test_more_classes_than_a_request_takes(tracking: Path) -> None:
    run = start()["children"]["merged"]
    log_stage(run, 1, {"per_class": {f"c{n}": {"recall": n / 1100} for n in range(1100)}})
    assert len(client().get_run(run).data.metrics) == 1100


def test_credentials_are_recorded_nowhere(tracking: Path) -> None:
    config = load_config(
        None,
        {
            "data.name": "skin8",
            "data.path": "s3://key:hunter2@bucket/images?token=hunter2",
            "backbone.weights": "https://me:hun@ter2@host/w.safetensors",
        },
    )
    tags = {"origin": "git+https://user:hunter2@host/repo.git"}
    runs = open_runs(config, "key", DATA, VARIANTS, tags)
    for run in everything(runs):
        assert run.data.params["data.path"] == "s3://bucket/images"
        assert run.data.params["backbone.weights"] == "https://host/w.safetensors"
        assert run.data.tags["origin"] == "git+https://host/repo.git"
        assert "ter2" not in str(run.to_dictionary())


def test_without_a_setting_runs_go_into_the_current_folder(
    migrated_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my project"
    folder.mkdir()
    shutil.copy(migrated_database, folder / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(folder)
    (folder / "notes.txt").write_text("hello")
    runs = start()
    log_files(runs["parent"], [folder / "notes.txt"], "report")
    kept = folder / "mlartifacts" / runs["parent"] / "artifacts" / "report" / "notes.txt"
    assert kept.read_text() == "hello"
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlartifacts", "notes.txt"}
    assert run_url(runs) is None
    assert compare_url(runs) is None


def test_an_experiment_whose_artifacts_a_server_keeps_needs_the_server(tracking: Path) -> None:
    client().create_experiment("dynammo-skin8", artifact_location="mlflow-artifacts:/1")
    with pytest.raises(TrackingError, match="kept by an MLflow server: start it"):
        start()


def test_what_mlflow_refuses_is_one_line(tracking: Path) -> None:
    with pytest.raises(TrackingError, match=r"^MLflow at sqlite:///.*not found$"):
        log_stage("0" * 32, 1, stage(1, accuracy=0.5))


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_an_unreachable_server_is_named_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    port = unused_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@127.0.0.1:{port}")
    with pytest.raises(TrackingError) as caught:
        start()
    assert f"no MLflow server answers at http://127.0.0.1:{port} (" in str(caught.value)
    assert "MLFLOW_TRACKING_URI" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_database_that_cannot_be_opened_is_named_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for uri in (f"sqlite:///{tmp_path}", f"sqlite:///{tmp_path}/file/mlflow.db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(TrackingError, match=f"cannot open the MLflow database {uri}"):
            start()


class Answers(BaseHTTPRequestHandler):
    """As much of an MLflow server as is asked of it here; it knows no run."""

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(200, "OK")
        else:
            error = {
                "error_code": "RESOURCE_DOES_NOT_EXIST",
                "message": "no such run at http://me:hunter2@here",
            }
            self._answer(404, json.dumps(error))

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    httpd = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    address = f"127.0.0.1:{httpd.server_port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@{address}/")
    yield address
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_pages_on_a_server(server: str) -> None:
    runs: Runs = {"experiment_id": "7", "parent": "p", "children": {"merged": "a", "frozen": "b"}}
    assert run_url(runs) == f"http://{server}/#/experiments/7/runs/p"
    page, _, query = (compare_url(runs) or "").partition("?")
    assert page == f"http://{server}/#/metric"
    assert parse_qs(query)["runs"] == ['["a", "b"]']
    assert parse_qs(query)["experiments"] == ['["7"]']


def test_a_servers_refusal_names_it_without_the_password(server: str) -> None:
    with pytest.raises(TrackingError, match=f"^MLflow at http://{server}/: ") as caught:
        log_summary("unknown", {"last_accuracy": 0.5})
    assert "hunter2" not in str(caught.value)
