"""Keep MLflow up to date: an experiment's runs, its checkpoints as artifacts, and the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from dynammo.checkpoint import Ref
from dynammo.config import Config, TrainConfig
from dynammo.methods import METHODS
from tasks.support.caching import CODE, step_key
from tasks.support.mlflow import champion, served_model
from tasks.support.mlflow import runs as mlflow_runs
from tasks.support.stage import Stage, measured
from tasks.support.workspace import CHECKPOINTS
from tasks.version_data import DataVersion

_BESIDE_THE_POINT = {"device", "output", "tracking", "gate", "retention"}


def experiment_key(config: Config, data_hash: str, backbone: Any) -> str:
    """The hash of all that an experiment's metrics follow from: settings, images, weights, code.

    Args:
        config: the experiment; where it runs, publishes and records does not count.
        data_hash: content hash of the image set.
        backbone: what names the weights: their checkpoint, or the hash of a local file.
    """
    counting = config.only(*(type(config).model_fields.keys() - _BESIDE_THE_POINT))
    train = config.train.model_copy(update={"cache_mb": TrainConfig().cache_mb})
    values = counting.model_copy(update={"train": train})
    return step_key("run", {"settings": values, "data": data_hash, "backbone": backbone}, CODE)


@task(name="open MLflow runs", retries=2, retry_delay_seconds=3)
def open_runs(config: Config, data: DataVersion, backbone: Ref) -> dict[str, Any]:
    """Start one parent run and one child run a method, or find those that a killed flow left.

    Returns:
        `parent` and `children` (variant -> run id), `experiment_id`, and the pages `url` of the
        parent and `compare_url`, none without a tracking server, whose address `paths` follow.
    """
    key = experiment_key(config, data["hash"], backbone)
    runs = mlflow_runs.open_runs(config, key, dict(data), config.methods)
    pages = {"url": mlflow_runs.run_url(runs), "compare_url": mlflow_runs.compare_url(runs)}
    return {**runs, **pages, "paths": mlflow_runs.paths(runs)}


@task(name="track", retries=2, retry_delay_seconds=3, task_run_name="track {label} in MLflow")
def track_stage(runs: dict[str, Any], stage: Stage, label: str) -> None:
    """Log one task's metrics and checkpoints; what is logged already is left as it is."""
    number = stage["number"]
    folder = f"task-{number:02d}"
    if adapted := stage["adapted"]:
        if trained := adapted["trained"]:
            mlflow_runs.log_training_curve(runs["parent"], number, trained["history"])
            mlflow_runs.log_files(
                runs["parent"],
                _files(trained["adapter"], trained["head"]),
                f"adapters/{folder}",
            )
        if any(METHODS[name].shared_adapters == "merged" for name in stage["methods"]):
            mlflow_runs.log_files(runs["parent"], _files(adapted["merged"]), f"merged/{folder}")
    for name, evaluated in measured(stage).items():
        run = runs["children"][name]
        mlflow_runs.log_stage(run, number, CHECKPOINTS.load_json(evaluated["metrics"]))
        mlflow_runs.log_files(run, _files(evaluated["metrics"]), f"metrics/{folder}")
    for name, learnt in stage["methods"].items():
        run = runs["children"][name]
        mlflow_runs.log_files(run, _files(*learnt["heads"]), f"heads/{folder}")
        if learnt["statistics"]:
            mlflow_runs.log_files(run, _files(learnt["statistics"]), f"statistics/{folder}")
        mlflow_runs.log_training_curve(run, number, learnt["history"])


@task(name="register model", retries=2, retry_delay_seconds=3)
def register(
    config: Config, data: DataVersion, runs: dict[str, Any], results: dict[str, Any]
) -> dict[str, Any] | None:
    """Log summaries, report and figures; register the merged model; move `champion` if the gate
    passed.

    Returns:
        Name, version and whether it is champion; none where `tracking.register_model` is off, or
        where merged is not among the methods.
    """
    folder = config.output_dir
    figures = sorted((folder / "figures").glob("*.png"))
    for variant, run in runs["children"].items():
        mlflow_runs.log_summary(run, results["summary"][variant])
        own = [figure for figure in figures if figure.stem.endswith(f"_{variant}")]
        mlflow_runs.log_files(run, own, "figures", replace=True)
    mlflow_runs.log_files(runs["parent"], figures, "figures", replace=True)
    report = [folder / name for name in ("report.html", "results.json", "metrics.json")]
    mlflow_runs.log_files(runs["parent"], report, "report", replace=True)
    if not config.tracking.register_model:
        return None
    if "merged" not in config.methods:
        get_run_logger().info("merged is not among the methods: no model is registered")
        return None
    run = runs["children"]["merged"]
    example = served_model.plain_example(config.image.form)
    model = served_model.log_model(run, folder / "model", config.model_name, example)
    version = served_model.register(
        config.model_name,
        run,
        model,
        data_hash=data["hash"],
        classes=data["classes"],
        summary=results["summary"]["merged"],
    )
    promoted = champion.promote(config.model_name, version, results["gate"])
    get_run_logger().info(
        "registered %s version %s%s", config.model_name, version, ", champion" if promoted else ""
    )
    return {"name": config.model_name, "version": version, "champion": promoted}


@task(name="close MLflow runs")
def close_runs(runs: dict[str, Any], status: str) -> None:
    """Mark the runs FINISHED, FAILED or KILLED."""
    mlflow_runs.finish_runs(runs, status)


def _files(*refs: Ref) -> list[Path]:
    """Checkpoints and the metadata beside them."""
    paths = [CHECKPOINTS.path(ref) for ref in refs]
    beside = [path.with_suffix(".json") for path in paths if path.suffix == ".safetensors"]
    return paths + beside
