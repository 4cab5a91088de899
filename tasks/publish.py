"""Turn checkpoints into what people look at: a results folder, and Prefect artifacts."""

from __future__ import annotations

import csv
import io
import logging
import math
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from prefect import get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

import dynammo
from dynammo.checkpoint import CheckpointStore, Ref, check_writable, to_json, write_atomically
from dynammo.clinical import Counts, evidence
from dynammo.config import Config, TrackingConfig
from dynammo.data.samples import read_manifest
from dynammo.deploy.graph import copy_graph
from dynammo.deploy.manifest import Appearance, Clinical, PredictionSets, Unknown
from dynammo.deploy.predictor import save_model
from dynammo.errors import ConfigError, DynammoError
from dynammo.evaluation.gate import Change, Outcome, compare
from dynammo.evaluation.honesty import MISS, class_thresholds, unknown_limits
from dynammo.evaluation.metrics import summarise
from dynammo.evaluation.scores import write_predictions, write_scores
from dynammo.evaluation.strangeness import UnknownLimits
from dynammo.merging.trust import gains
from dynammo.reporting.report import (
    comparison_table,
    lead,
    markdown_table,
    readable_rows,
    write_report,
)
from tasks.evaluate import as_predictions
from tasks.support.exchange import in_use, swap
from tasks.support.mlflow.champion import current_champion, gate
from tasks.support.stage import Learnt, Stage, known_classes, measured
from tasks.support.workspace import CHECKPOINTS, versions
from tasks.version_data import DataVersion

_log = logging.getLogger(__name__)

CURVES = (
    "task",
    "accuracy",
    "mean_class_recall",
    "negative_flips",
    "ece",
    "open_set_auroc",
    "gmacs",
)

# Outs of the stage in dvc.yaml, too: DVC removes those before it runs again.
_FOLDERS = {"figures", "model", "curves", "predictions", "scores"}
PUBLISHED = _FOLDERS | {
    *("metrics.json", "results.json", "report.html", "table.md"),
    *("curves.csv", "per_class.csv", "confusion.csv"),
    ".gitignore",  # DVC's
}


@task(name="publish results", task_run_name="publish results to {config.output_dir}")
def publish(
    config: Config, data: DataVersion, backbone: Ref, stages: list[Stage], runs: dict[str, Any]
) -> dict[str, Any]:
    """Write report, metrics, figures and tables into the results folder, and where merged is among
    the methods the deployable model.

    The folder is replaced as a whole and only when everything in it has been written.

    Returns:
        The results document, as in results.json.
    """
    results = collect(config, data, stages)
    results["paired"] = _paired(data, stages[-1], lead(results))
    results["trust"] = _trust(stages[-1])
    summary = results["summary"]
    deployable = "merged" in summary
    if deployable:
        registers = config.tracking.register_model
        results["gate"] = gate(
            config.gate,
            summary["merged"],
            summary.get("unmerged"),
            current_champion(config.model_name, runs["children"]["merged"]) if registers else None,
            data_hash=data["hash"],
            classes=data["classes"],
        )
    unfolded: list[str] = []
    with replaced_folder(config.output_dir) as folder:
        write_atomically(folder / "metrics.json", to_json(summary))
        write_atomically(folder / "results.json", to_json(results))
        write_report(results, folder)
        _write_tables(config, data, stages, results, folder)
        if deployable:
            unfolded = save_merged(config, data["hash"], backbone, stages[-1], folder / "model")
            put_graph(config, folder / "model")
    show(results, runs)
    logger = get_run_logger()
    if unfolded:
        logger.info("the model keeps adapters that cannot be folded: %s", "; ".join(unfolded))
    logger.info("results are in %s", config.output_dir)
    return results


def save_merged(
    config: Config,
    data_hash: str,
    backbone: Ref,
    stage: Stage,
    folder: Path,
    store: CheckpointStore = CHECKPOINTS,
    learner: Mapping[str, str | int] | None = None,
) -> list[str]:
    """Save the merged model as it is after a stage; as `save_model` returns. `model.json` names the
    `learner` and its version, if it is one's.
    """
    merged, head = stage["methods"]["merged"]["adapter"], stage["methods"]["merged"]["heads"][0]
    assert merged is not None
    return save_model(
        folder,
        backbone=config.backbone,
        form=config.image.form,
        adapter=config.adapter,
        backbone_weights=store.load(backbone),
        adapter_weights=store.load(merged),
        head=store.load(head),
        classes=known_classes(stage),
        **thresholds(stage["methods"]["merged"], config.tracking, store),
        clinical=_clinical(config, stage, store),
        parents=config.classes.hierarchy,
        provenance={
            "data": data_hash,
            **({"learner": learner} if learner else {}),
            "parents": {
                "backbone": backbone["sha256"],
                "merged": merged["sha256"],
                "head": head["sha256"],
            },
            "versions": {"dynammo": dynammo.__version__, **versions()},
        },
    )


class Thresholds(TypedDict):
    """What `save_model` keeps of the answers to images that the model has not learnt from."""

    prediction_sets: PredictionSets | None
    unknown: Unknown | None


def thresholds(merged: Learnt, tracking: TrackingConfig, store: CheckpointStore) -> Thresholds:
    """Thresholds on all test images of known classes; none where no answers to images are kept.

    Args:
        merged: the method, after the last task.
        tracking: the share of known images that may be called unknown; of too few images for it
            there is no threshold.
        store: of the answers.
    """
    evaluated = merged["evaluated"]
    if evaluated is None or evaluated["predictions"] is None:
        return {"prediction_sets": None, "unknown": None}
    saved = store.load(evaluated["predictions"])
    predictions = as_predictions(saved)
    known = predictions.targets < predictions.classes
    scores = predictions.scores[known]
    targets = predictions.targets[known]
    limits, alarm = class_thresholds(scores, targets, MISS), tracking.unknown_alarm
    looks = saved["appearance"].numpy()[known] if "appearance" in saved else None
    finite = [limit if math.isfinite(limit) else None for limit in limits.tolist()]
    return {
        "prediction_sets": PredictionSets(miss=MISS, thresholds=finite),
        "unknown": _unknown(
            unknown_limits(scores, targets, looks, alarm, tracking.unknown_by_class), alarm
        ),
    }


def _clinical(config: Config, stage: Stage, store: CheckpointStore) -> Clinical | None:
    """What columns beside the image say; none where none are counted."""
    if "clinical" not in stage or not config.clinical.names:
        return None
    counts: Counts = store.load_json(stage["clinical"]["counts"])
    found = evidence(counts, config.clinical.names, config.clinical.weight)
    return Clinical.model_validate(found._asdict())


def _unknown(limits: UnknownLimits | None, alarm: float) -> Unknown | None:
    """As `model.json` says it."""
    if limits is None:
        return None
    kind = limits.appearance and Appearance(
        means=limits.appearance.means.tolist(),
        precision=limits.appearance.precision.tolist(),
        threshold=limits.distance,
    )
    return Unknown(alarm=alarm, threshold=limits.threshold, appearance=kind)


def put_graph(config: Config, folder: Path, earlier: Path | None = None) -> None:
    """Put the ONNX graph into a model's folder, as `tracking.onnx_graph` says.

    A network that cannot be exported is published all the same, and a line of the log says why it
    has no graph: torch can answer with it.

    Args:
        config: of the experiment.
        folder: of the model.
        earlier: a model folder whose graph is taken if its model is the same, or of a like network.
    """
    if not config.tracking.onnx_graph or (earlier is not None and copy_graph(earlier, folder)):
        return
    try:
        from dynammo.deploy.export import add_graph

        add_graph(folder, earlier)
    except DynammoError as error:
        _log.warning("the model has no ONNX graph, torch will answer: %s", error)


def collect(config: Config, data: DataVersion, stages: list[Stage]) -> dict[str, Any]:
    """The results document: configuration, data version, and every method's metrics."""
    variants = {}
    for name in config.methods:
        documents = [CHECKPOINTS.load_json(measured(stage)[name]["metrics"]) for stage in stages]
        cost = {key: documents[-1][key] for key in ("gmacs", "parameters")}
        variants[name] = {"summary": {**summarise(documents), **cost}, "stages": documents}
    return {
        "name": config.title,
        "created_by": {"dynammo": dynammo.__version__, **versions()},
        "data": {
            "name": config.data.name,
            "source": config.data.source,
            "path": config.data.path,
            "hash": data["hash"],
            "train_images": data["train_images"],
            "test_images": data["test_images"],
        },
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "tasks": [
            {
                "number": part["number"],
                "classes": part["train"]["names"],
                "train_images": part["train_images"],
                "test_images": part["test_images"],
            }
            for part in data["tasks"]
        ],
        "variants": variants,
        "summary": {name: variant["summary"] for name, variant in variants.items()},
        "paired": {},
        "trust": None,
        "gate": None,
    }


def _paired(data: DataVersion, stage: Stage, first: str) -> dict[str, Change]:
    """What the report's first method has over each other at the end, on the same test images."""
    names = data["classes"]
    tests = read_manifest(Path(data["manifest"])).select("test", names)
    targets = np.array([names.index(sample.label) for sample in tests])
    groups = [sample.group for sample in tests]

    def predicted(name: str) -> NDArray[np.int64]:
        answers = measured(stage)[name]["predictions"]
        assert answers is not None  # a run keeps them all
        found: NDArray[np.int64] = CHECKPOINTS.load(answers)["predicted"].numpy()
        return found

    ours = predicted(first)
    return {
        other: compare(Outcome(targets, predicted(other), ours, groups, names))["overall"]
        for other in stage["methods"]
        if other != first
    }


def _trust(stage: Stage) -> dict[str, Any] | None:
    """What held-out images said of the merged adapter, where they were asked."""
    adapted = stage["adapted"]
    trust = adapted.get("trust") if adapted else None
    if trust is None:
        return None
    gain = next(found for found in gains(trust["answers"]) if found.scale == 1)
    images = sum(own["images"] for own in trust["answers"].values())
    return {**gain._asdict(), "scale": trust["scale"], "images": images}


def _write_tables(
    config: Config, data: DataVersion, stages: list[Stage], results: dict[str, Any], folder: Path
) -> None:
    """`curves/<variant>.csv`, a row a task, `predictions/<variant>.csv`, a row a test image, and
    `scores/<variant>.csv.gz`, a row a test image and task.
    """
    names = data["classes"]
    tests = read_manifest(Path(data["manifest"])).select("test", names)
    tested = {sample.file: sample.label for sample in tests}
    for variant, document in results["variants"].items():
        curves = [
            {key: stage[key] for key in (*CURVES, "hierarchical_cost") if key in stage}
            for stage in document["stages"]
        ]
        _write_csv(folder / "curves" / f"{variant}.csv", curves)
        kept = [measured(stage)[variant]["predictions"] for stage in stages]
        said = [as_predictions(CHECKPOINTS.load(ref)) for ref in kept if ref is not None]
        assert len(said) == len(stages)  # a run keeps them all
        write_scores(folder / "scores" / f"{variant}.csv.gz", said, list(tested), names)
        write_predictions(folder / "predictions" / f"{variant}.csv", said[-1], tested, names)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def show(results: dict[str, Any], runs: dict[str, Any]) -> None:
    """Prefect artifacts: the comparison as a table, the outcome as text, links to MLflow."""
    slug = re.sub(r"[^a-z0-9]+", "-", results["data"]["name"].lower()).strip("-")
    rows = comparison_table(results)
    gated = results["gate"]
    verdict = "\n".join(
        f"- {'passed' if check['passed'] else 'FAILED'}: {check['name']} ({check['detail']})"
        for check in (gated["checks"] if gated else [])
    )
    verdict = verdict or "There is no merged model to judge."
    table = readable_rows(rows)
    create_table_artifact(
        table, key=f"{slug}-comparison", description=", ".join(results["variants"])
    )
    create_markdown_artifact(
        f"# {results['name']}\n\n{markdown_table(rows)}\n\n## Gate\n\n{verdict}\n",
        key=f"{slug}-summary",
    )
    if runs["url"]:
        create_link_artifact(runs["url"], "the run in MLflow", key=f"{slug}-mlflow")
        create_link_artifact(
            runs["compare_url"], "the curves in MLflow", key=f"{slug}-mlflow-curves"
        )
        get_run_logger().info("the curves in MLflow: %s", runs["compare_url"])


def check_output(target: Path) -> None:
    """Refuse a results folder that holds anything but results: publishing replaces it as a whole.

    Raises:
        ConfigError: it does, is no folder, or could not be written beside.
    """
    if target.is_dir():
        names = {entry.name for entry in target.iterdir()}
        foreign = sorted(names - PUBLISHED)
        if "results.json" not in names:  # then such folders are somebody else's
            foreign += sorted(names & _FOLDERS)
        if foreign:
            raise ConfigError(
                [f"output: {target} would be replaced, but holds {', '.join(foreign[:3])}"]
            )
    elif target.exists():
        raise ConfigError([f"output: {target} is a file; expected a folder for the results"])
    try:
        check_writable(target.absolute().parent / f".{target.name}")
    except OSError as error:
        raise ConfigError([f"output: {target} cannot be written: {error.strerror}"]) from None


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the target's place when the block ends without an error."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    fresh.chmod(0o755)
    with in_use(fresh):  # or it would be swept away as one that was left
        try:
            yield fresh
            if target.exists():
                swap(fresh, target)
                shutil.rmtree(fresh)
            else:
                fresh.replace(target)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
