"""Record an experiment in MLflow: a parent run, and a child run for each method.

Everything can be called again with the same arguments without adding anything: a killed pipeline,
started again, continues its runs, and a finished one finds them as they are. Only the client API is
used, never MLflow's global "active run", so threads do not get in each other's way.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import ssl
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypedDict
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import urlopen

import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

import dynammo
from dynammo.config import Config
from dynammo.errors import DynammoError
from dynammo.methods import METHODS
from tasks.support.mlflow.database import make_database
from tasks.support.processes import this_process

RUN_KEY, _VARIANT, _PARENT = "dynammo.run_key", "dynammo.variant", "mlflow.parentRunId"
_NOTE = "mlflow.note.content"
_EXPERIMENT = {
    _NOTE: "A run has a child a method, merged, unmerged, frozen and others: the same metrics, "
    "with the number of tasks learnt as the step. A run's description links to their curves."
}
PROCESS = "dynammo.process"  # by which tasks.support.sweep knows that a run will not go on
_PARAM_LENGTH, _TAG_LENGTH, _DIGEST_LENGTH, _BATCH = 6000, 5000, 36, 1000  # MLflow's limits
_ANSWER_SECONDS = 5
_NOT_LOGGED_IN = "UNAUTHENTICATED"
LOGIN_ADVICE = "source .dynammo/servers/env, which make up writes, or set your own server's"

_STAGE_METRICS = (
    "accuracy",
    "mean_class_recall",
    "negative_flips",
    "ece",
    "open_set_auroc",
    "open_set_fpr95",
    "hierarchical_cost",
    "gmacs",
    "parameters",
)


class TrackingError(DynammoError):
    """MLflow cannot be reached, or refuses what it is given."""


class Runs(TypedDict):
    """The MLflow runs of one experiment execution. `children` maps a variant to its run."""

    experiment_id: str
    parent: str
    children: dict[str, str]


def tracking_uri() -> str:
    """Where runs are recorded: MLFLOW_TRACKING_URI, or else `mlflow.db` in the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"


def without_credentials(text: str) -> str:
    """The text with user names, passwords and query strings cut from every URI in it."""
    text = re.sub(r"(?<=://)[^/\s]*@", "", text)
    return re.sub(r"(\w+://[^\s?]*)\?[^\s)'\"]*", r"\1", text)


@contextmanager
def mlflow_client() -> Iterator[MlflowClient]:
    """A client of `tracking_uri()`.

    Raises:
        TrackingError: the server or database does not answer within seconds, or MLflow refuses what
            is asked of it within the block. One line, without credentials.
    """
    uri = tracking_uri()
    _check_answers(uri)
    # MLflow's default of 7 retries goes on for minutes after a server is gone.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        yield MlflowClient(uri)
    except (MlflowException, SQLAlchemyError) as error:
        if isinstance(error, MlflowException) and error.error_code == _NOT_LOGGED_IN:
            raise TrackingError(
                f"MLflow at {without_credentials(uri)} asks for a login: {LOGIN_ADVICE} "
                "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)"
            ) from None
        raise TrackingError(f"MLflow at {without_credentials(uri)}: {_line(error)}") from None


def open_runs(
    config: Config,
    run_key: str,
    data: Mapping[str, Any],
    variants: Sequence[str],
    tags: Mapping[str, str] | None = None,
) -> Runs:
    """Find or make the parent run of an experiment execution and a child run for each variant.

    A run is found by its tag `dynammo.run_key`. A deleted one is restored, an unfinished one goes
    back to RUNNING, and a finished one stays as it is. All get the configuration as parameters
    (`train.epochs`), the data set as an input, a description and the tags; what a run has already,
    it keeps, as MLflow never changes a parameter and a description may have been edited.

    Args:
        config: the experiment.
        run_key: names this execution; the same for the same configuration, data and code.
        data: of the data set its `hash`, and where known `train_images`, `test_images`, `tasks` and
            `dvc` (with the `md5` of its version).
        variants: names of the methods, and so of the child runs.
        tags: further tags, such as the version of the code.

    Raises:
        TrackingError: see `mlflow_client`.
    """
    common = {
        RUN_KEY: run_key,
        "dynammo.version": dynammo.__version__,
        "dynammo.data_hash": data["hash"],
        "mlflow.source.name": "dynammo",
        **(tags or {}),
    }
    if commit := _git_commit():
        common["mlflow.source.git.commit"] = commit
    if md5 := (data.get("dvc") or {}).get("md5"):
        common["dvc.md5"] = md5
    params = dict(_flatten(config.model_dump(mode="json")))
    with mlflow_client() as client:
        experiment_id = _experiment(client, config.experiment)
        known = _known_runs(client, experiment_id, run_key)

        def find_or_make(variant: str, name: str, more: Mapping[str, str]) -> str:
            run = known.get(variant) or client.create_run(
                experiment_id, run_name=name, tags={PROCESS: this_process()}
            )
            return _fill(client, run, {_VARIANT: variant, **common, **more}, params, config, data)

        parent = find_or_make("parent", config.title, {})
        children = {
            variant: find_or_make(
                variant,
                variant,
                {_PARENT: parent, _NOTE: _note(variant)},
            )
            for variant in variants
        }
        if _NOTE not in client.get_run(parent).data.tags:
            link = _compare_path(experiment_id, list(children.values()))
            client.set_tag(parent, _NOTE, _describe(config, data, link))
    return {"experiment_id": experiment_id, "parent": parent, "children": children}


def open_run(
    experiment: str,
    run_key: str,
    name: str,
    description: str,
    params: Mapping[str, Any],
    kind: str = "grid",
) -> str:
    """Find or make one run that is not of a single experiment: that of a grid, or of monitoring.

    Args:
        experiment: of MLflow; made if missing.
        run_key: names the run; the same for the same grid.
        name: of the run.
        description: its note.
        params: nested settings.
        kind: of run.

    Returns:
        The run's id. It is RUNNING.

    Raises:
        TrackingError: see `mlflow_client`.
    """
    with mlflow_client() as client:
        experiment_id = _experiment(client, experiment)
        run = _known_runs(client, experiment_id, run_key).get(kind)
        if run is None:
            run = client.create_run(experiment_id, run_name=name, tags={PROCESS: this_process()})
            tags = {RUN_KEY: run_key, _VARIANT: kind, _NOTE: description}
            tags |= {"dynammo.version": dynammo.__version__, "mlflow.source.name": "dynammo"}
            client.log_batch(
                run.info.run_id,
                tags=[RunTag(key, _shown(value, _TAG_LENGTH)) for key, value in tags.items()],
                params=[Param(key, value) for key, value in _flatten(params)],
            )
        elif run.info.lifecycle_stage == "deleted":
            client.restore_run(run.info.run_id)
        client.set_tag(run.info.run_id, PROCESS, this_process())
        client.update_run(run.info.run_id, status="RUNNING")
        run_id: str = run.info.run_id
    return run_id


def finish_run(run_id: str, metrics: Mapping[str, float | None], failed: bool) -> None:
    """Record a run's metrics and give it its final status."""
    _log_metrics(run_id, [(key, 0, value) for key, value in metrics.items()])
    with mlflow_client() as client:
        client.set_terminated(run_id, "FAILED" if failed else "FINISHED")


def log_monitoring(config: Config, registered: str, found: Mapping[str, Any]) -> str:
    """Record what was found on new images: a run whose metrics are also those of the model.

    The run has the report as `monitor.json` and the tag `alarm`; the registered version has the
    tag `monitor` of the last time.

    Args:
        config: of the learner's version.
        registered: version of the registered model.
        found: what `tasks.monitor_learner.monitor_version` gave.

    Returns:
        The run's id.

    Raises:
        TrackingError: see `mlflow_client`.
    """
    alarm = ", ".join(found["alarms"]) or "none"
    about = {key: found[key] for key in ("version", "false_alarms", "known", "unreadable")}
    run_id = open_run(
        config.experiment,
        f"monitor {found['learner']} {found['version']} {found['at']}",
        f"monitor version {found['version']}",
        f"New images compared with those that version {found['version']} was measured on.",
        about,
        kind="monitor",
    )
    values = {"monitor/alarms": len(found["alarms"]), "monitor/images": found["images"]}
    values |= {f"monitor/p/{_safe(own['name'])}": own["adjusted"] for own in found["checks"]}
    now = int(time.time() * 1000)
    with mlflow_client() as client:
        version = client.get_model_version(config.model_name, registered)
        # A version's own `model_id` is not given back by every store.
        experiment = client.get_run(run_id).info.experiment_id
        logged = client.search_logged_models(
            [experiment], filter_string=f"source_run_id = '{version.run_id}'"
        )
        model = next((m.model_id for m in logged if m.artifact_location == version.source), None)
        client.log_batch(
            run_id,
            metrics=[Metric(key, float(own), now, 0, model) for key, own in values.items()],
            tags=[RunTag("alarm", _shown(alarm, _TAG_LENGTH))],
        )
        client.log_dict(run_id, dict(found), "monitor.json")
        note = _shown(f"{found['at']}: alarm: {alarm}", _TAG_LENGTH)
        client.set_model_version_tag(config.model_name, registered, "monitor", note)
        client.set_terminated(run_id, "FINISHED")
    return run_id


def log_stage(run_id: str, step: int, stage: Mapping[str, Any]) -> None:
    """Record a variant's metrics after one task: the same keys in every run, so curves overlay.

    Overall metrics, `accuracy_task_03` (on the images of task 3), `recall/<class>` and, where
    classes belong to groups, `recall/group/<group>`; a metric without a value is left out.

    Args:
        run_id: the variant's run.
        step: number of tasks learnt.
        stage: the metrics document of the stage.
    """
    values = {name: stage.get(name) for name in _STAGE_METRICS}
    for number, accuracy in enumerate(stage.get("task_accuracy", ()), start=1):
        values[f"accuracy_task_{number:02d}"] = accuracy
    for name, metrics in stage.get("per_class", {}).items():
        values[f"recall/{_safe(name)}"] = metrics["recall"]
    for name, metrics in stage.get("per_group", {}).items():
        values[f"recall/group/{_safe(name)}"] = metrics["recall"]
    _log_metrics(run_id, [(key, step, value) for key, value in values.items()])


def log_requirements(run_id: str, step: int, ends: Mapping[str, tuple[float, float]]) -> None:
    """Record what a plan's limits judge of a version, `requirement/NAME`, beside `/limit`.

    Args:
        run_id: the method's run.
        step: the version.
        ends: (measured, limit) by name, see `dynammo.evaluation.protocol.worse_ends`.
    """
    points = []
    for name, (measured, limit) in ends.items():
        key = f"requirement/{_safe(name)}"
        points += [(key, step, measured), (f"{key}/limit", step, limit)]
    _log_metrics(run_id, points)


def log_summary(run_id: str, summary: Mapping[str, float | None]) -> None:
    """Record what sums up all stages of a variant: averages, last values, forgetting.

    The cost (gmacs, parameters) is not repeated: `log_stage` recorded it at each stage.
    """
    _log_metrics(run_id, [(k, 0, v) for k, v in summary.items() if k not in _STAGE_METRICS])


def log_training_curve(
    run_id: str, task_number: int, history: Iterable[tuple[float, float] | Sequence[float]]
) -> None:
    """Record the training of a task's adapter as `train_loss_task_03` and `train_accuracy_task_03`.

    Args:
        run_id: the parent run.
        task_number: from 1.
        history: (loss, accuracy) of each epoch; the epoch, from 1, is the step.
    """
    _log_metrics(
        run_id,
        [
            (f"train_{name}_task_{task_number:02d}", epoch, value)
            for epoch, means in enumerate(history, start=1)
            for name, value in zip(("loss", "accuracy"), means, strict=True)
        ],
    )


def log_files(
    run_id: str, files: Iterable[Path], artifact_path: str | None = None, replace: bool = False
) -> None:
    """Record files as artifacts, except those that are there already with that name and size.

    Args:
        run_id: the run.
        files: files, not folders.
        artifact_path: folder among the run's artifacts.
        replace: record them again even so; for files that are not named by their content.
    """
    with mlflow_client() as client:
        listed = [] if replace else client.list_artifacts(run_id, artifact_path)
        present = {(info.path, info.file_size) for info in listed}
        for file in files:
            path = f"{artifact_path}/{file.name}" if artifact_path else file.name
            if (path, file.stat().st_size) not in present:
                client.log_artifact(run_id, str(file), artifact_path)


def finish_runs(runs: Mapping[str, Any], status: str = "FINISHED") -> None:
    """Give the parent and its children their final status; a run that has it keeps its end time.

    Args:
        runs: what `open_runs` returned.
        status: FINISHED, FAILED or KILLED.
    """
    with mlflow_client() as client:
        for run_id in (*runs["children"].values(), runs["parent"]):
            if client.get_run(run_id).info.status != status:
                client.set_terminated(run_id, status)


def run_url(runs: Runs) -> str | None:
    """The page of the parent run, where a tracking server shows one."""
    return _page(f"#/experiments/{runs['experiment_id']}/runs/{runs['parent']}")


def compare_url(runs: Runs) -> str | None:
    """The page that lays the children's curves over each other, where a server shows one."""
    return _page(paths(runs)["curves"])


def paths(runs: Runs) -> dict[str, str]:
    """What follows a server's address: `runs`, the experiment's, and the children's `curves`."""
    return {
        # MLflow's page of an experiment opens on language models unless it is told otherwise.
        "runs": f"#/experiments/{runs['experiment_id']}?workflowType=machine_learning",
        "curves": _compare_path(runs["experiment_id"], list(runs["children"].values())),
    }


def _page(path: str) -> str | None:
    uri = tracking_uri()
    return f"{without_credentials(uri).rstrip('/')}/{path}" if _is_server(uri) else None


def _experiment(client: MlflowClient, name: str) -> str:
    """The experiment's id; it is made if missing, and restored if deleted."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        made: str = client.create_experiment(
            name, artifact_location=_artifact_location(), tags=dict(_EXPERIMENT)
        )
        return made
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    kept_by_server = experiment.artifact_location.startswith("mlflow-artifacts:")
    if kept_by_server and not _is_server(tracking_uri()):
        raise TrackingError(
            f"the artifacts of experiment {name!r} are kept by an MLflow server: start it "
            "(make up) and set MLFLOW_TRACKING_URI to its address, or name another "
            "tracking.experiment"
        )
    experiment_id: str = experiment.experiment_id
    return experiment_id


def _artifact_location() -> str | None:
    """`mlartifacts` beside an SQLite database. None: a server, or another database, decides."""
    uri = tracking_uri()
    if _database(uri) != "sqlite":
        return None
    database = Path(sqlalchemy.make_url(uri).database or "").absolute()
    return (database.parent / "mlartifacts").as_uri()


def _known_runs(client: MlflowClient, experiment_id: str, run_key: str) -> dict[str, Run]:
    """The runs made before, by variant; where there are several, the newest that is not deleted."""
    found = client.search_runs(
        [experiment_id],
        filter_string=f"tags.`{RUN_KEY}` = '{run_key}'",
        run_view_type=ViewType.ALL,
    )
    best_last = sorted(found, key=lambda r: (r.info.lifecycle_stage == "active", r.info.start_time))
    return {run.data.tags[_VARIANT]: run for run in best_last}


def _fill(
    client: MlflowClient,
    run: Run,
    tags: Mapping[str, str],
    params: Mapping[str, str],
    config: Config,
    data: Mapping[str, Any],
) -> str:
    """Bring a run to life and give it whatever it lacks."""
    run_id: str = run.info.run_id
    if run.info.lifecycle_stage == "deleted":
        client.restore_run(run_id)
    if run.info.status != "FINISHED":
        client.set_tag(run_id, PROCESS, this_process())
        client.update_run(run_id, status="RUNNING")
    present = run.data.tags
    client.log_batch(
        run_id,
        tags=[
            RunTag(key, _shown(value, _TAG_LENGTH))
            for key, value in tags.items()
            # The parent may be a new run, made in place of one that is gone for good.
            if key not in present or (key == _PARENT and present[key] != value)
        ],
        params=[Param(key, value) for key, value in params.items() if key not in run.data.params],
    )
    if run.inputs is None or not run.inputs.dataset_inputs:
        client.log_inputs(run_id, [_dataset(config, data)])
    return run_id


def _dataset(config: Config, data: Mapping[str, Any]) -> DatasetInput:
    counts = {key: data[key] for key in ("train_images", "test_images") if key in data}
    dataset = Dataset(
        name=config.data.name,
        digest=data["hash"][:_DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": without_credentials(config.data.path)}),
        profile=json.dumps({**counts, "hash": data["hash"]}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training and testing")])


def _note(method: str) -> str:
    about = METHODS[method].about
    return f"`{method}`: {about.meaning}. Source: {about.source}."


def _describe(config: Config, data: Mapping[str, Any], link: str) -> str:
    tasks = f"{len(data['tasks'])} tasks" if "tasks" in data else "tasks"
    return (
        f"Class-incremental learning of data set `{config.data.name}`, preset `{config.preset}`, "
        f"seed {config.seed}: {tasks} one after another, learnt by {', '.join(config.methods)} "
        f"(adapters are merged by the rule `{config.merge.rule}`). The child runs, one a method, "
        "hold the same metrics with the number of tasks learnt as the step: "
        f"[compare their curves]({link})."
    )


def _compare_path(experiment_id: str, run_ids: Sequence[str]) -> str:
    """MLflow's page that lays the mean class recall of some runs over each other."""
    query = {
        "runs": list(run_ids),
        "metric": "mean_class_recall",
        "experiments": [experiment_id],
        "plot_metric_keys": ["mean_class_recall"],
        "x_axis": "step",
    }
    values = {k: v if k == "x_axis" else json.dumps(v) for k, v in query.items()}
    return f"#/metric?{urlencode(values, quote_via=quote)}"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names and text. `adapter.options` is one value, and so is what a
    file says: a class's name may be no name of a parameter.
    """
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in ("adapter.options", "classes.parents"):
            yield from _flatten(value, f"{key}.")
        else:
            yield key, _shown(value if isinstance(value, str) else json.dumps(value), _PARAM_LENGTH)


def _shown(text: str, length: int) -> str:
    text = without_credentials(str(text))
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _safe(name: str) -> str:
    """A class name as MLflow takes it in a metric's key; different names stay different."""
    safe = re.sub(r"[^A-Za-z0-9_\- ]", "_", name)[:200]
    return safe if safe == name else f"{safe}_{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _log_metrics(run_id: str, points: Sequence[tuple[str, int, float | None]]) -> None:
    """Record (key, step, value), except what has no value and what is there already."""
    points = [p for p in points if p[2] is not None and math.isfinite(p[2])]
    if not points:
        return
    with mlflow_client() as client:
        known = {key for key, _, _ in points} & client.get_run(run_id).data.metrics.keys()
        present = {
            (key, metric.step, metric.value)
            for key in known
            for metric in client.get_metric_history(run_id, key)
        }
        now = int(time.time() * 1000)
        new = [
            Metric(key, float(value), now, step)
            for key, step, value in points
            if value is not None and (key, step, value) not in present
        ]
        for start in range(0, len(new), _BATCH):
            client.log_batch(run_id, metrics=new[start : start + _BATCH])


def _git_commit() -> str | None:
    """The commit of the code that runs, where git knows one."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def _is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in ("http", "https")


def _database(uri: str) -> str | None:
    """The kind of database that an SQLAlchemy URI names, if it names one."""
    kind = urlsplit(uri).scheme.partition("+")[0]
    return kind if kind in ("sqlite", "postgresql", "mysql", "mssql") else None


@cache
def _check_answers(uri: str) -> None:
    """Ask once whether anyone is there: left to itself, MLflow tries for minutes."""
    shown = without_credentials(uri)
    advice = (
        "start it (make up), correct the environment variable MLFLOW_TRACKING_URI, or unset it to "
        "record into mlflow.db in the current folder"
    )
    if _is_server(uri):
        try:
            # http or https: _is_server has seen to that.
            urlopen(f"{shown.rstrip('/')}/health", timeout=_ANSWER_SECONDS).close()  # nosec B310
        except HTTPError:
            return  # an answer, if only from what stands before MLflow
        except (URLError, OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, ssl.SSLError):
                return  # MLflow has settings of its own for certificates
            raise TrackingError(
                f"no MLflow server answers at {shown} ({_line(reason)}): {advice}"
            ) from None
    elif _database(uri):
        try:
            url = sqlalchemy.make_url(uri)
            if _database(uri) == "sqlite" and url.database:
                make_database(Path(url.database).absolute())
            sqlalchemy.create_engine(url).connect().close()
        except (SQLAlchemyError, ImportError, OSError) as error:
            raise TrackingError(
                f"cannot open the MLflow database {shown} ({_line(error)}): {advice}"
            ) from None


def _line(error: object) -> str:
    """An error's first line, short and without credentials."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return without_credentials(lines[0])[:300]
