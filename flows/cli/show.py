"""What the commands of the command line do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dynammo.clinical import read_rows
from dynammo.config import Config
from dynammo.data.sources.csv_manifest import load as load_csv
from dynammo.data.sources.folder import image_files
from dynammo.deploy.answers import Answer
from dynammo.deploy.graph import load_predictor
from dynammo.errors import DataError
from dynammo.evaluation.metrics import Predictions, evaluate_stage
from dynammo.reporting.report import COLUMNS, advice, comparison_table
from flows.cli import server


def run_locally(config: Config, params: str | None, overrides: dict[str, Any]) -> None:
    """Run the flow in this process, then say where to look."""
    from flows.incremental import incremental
    from tasks.publish import check_output
    from tasks.support.mlflow.runs import tracking_uri

    check_output(config.output_dir)  # before anything is started
    server.ready()
    came = incremental(params, overrides)
    folder = config.output_dir
    uri = tracking_uri()
    served = uri.startswith("http")
    address = uri.rstrip("/") if served else "http://127.0.0.1:5000"
    model = []
    if "merged" in config.methods:
        model = [
            f"model        {folder / 'model'}",
            f"             try: dynammo predict --model {folder / 'model'} IMAGE...",
        ]
    lines = [
        f"report       {folder / 'report.html'}",
        f"metrics      {folder / 'metrics.json'}",
        *model,
        f"MLflow       {address}" + ("" if served else " (start it with: make ui)"),
    ]
    results = read_results(folder)
    console = Console()
    console.print(_table(results), *advice(results), sep="\n")
    console.print(Panel(Text("\n".join(lines)), title="where to look"))
    for what, path in came["paths"].items():
        console.print(Text(f"{what}: {address}/{path}"), soft_wrap=True)


def comparison(folders: Sequence[Path]) -> Group:
    """One table a results folder, a row a method.

    Raises:
        DataError: a folder holds no results.
    """
    return Group(*(_table(read_results(folder)) for folder in folders))


def read_results(folder: Path) -> dict[str, Any]:
    """The results document of a run.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = folder / "results.json"
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        whole = isinstance(document["name"], str) and all(
            isinstance(own["summary"], dict) for own in document["variants"].values()
        )
    except OSError:
        raise DataError(f"{folder} holds no results (no results.json in it)") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    if not whole:
        raise DataError(f"{path} is damaged: no name, or a variant without a summary")
    return document


def evaluate_model(model: Path, data: Path, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Metrics of a saved model on labelled images, and what its prediction sets are worth.

    Args:
        model: folder of the model.
        data: a folder with `test/<class>/*` or `<class>/*`, or a CSV manifest (its test rows).
        progress: called with (images done, images).

    Raises:
        DataError: no images, or a class that the model has not learnt.
    """
    predictor = load_predictor(model)
    labelled = list(_labelled(data, predictor.form.volumes))
    unknown = sorted({label for _, label in labelled} - set(predictor.classes))
    if unknown:
        raise DataError(f"{data}: the model has not learnt {unknown}; it knows {predictor.classes}")
    files, columns = [file for file, _ in labelled], {}
    if predictor.clinical is not None and data.is_file():
        rows = read_rows(data, predictor.clinical)
        columns = {
            name: [rows.get(file.absolute(), {}).get(name, "") for file in files]
            for name in predictor.clinical.names
        }
    answers = predictor.predict(files, progress=progress, columns=columns)
    index = {name: position for position, name in enumerate(predictor.classes)}
    confidence = np.array([answer.probability for answer in answers])
    predictions = Predictions(
        targets=np.array([index[label] for _, label in labelled]),
        predicted=np.array([index[answer.label] for answer in answers]),
        scores=np.array([[a.probabilities[name] for name in predictor.classes] for a in answers]),
        confidence=confidence,
        knownness=confidence,
    )
    return {
        **evaluate_stage(predictions, [predictor.classes], 1, parents=predictor.parents),
        "prediction_sets": _sets_of(answers, [label for _, label in labelled]),
        "unknown": None
        if predictor.unknown is None
        else float(np.mean([answer.unknown for answer in answers])),
    }


def _sets_of(answers: Sequence[Answer], labels: Sequence[str]) -> dict[str, float] | None:
    """Mean size of the prediction sets, and the share that holds the class; none without sets."""
    sets = [answer.prediction_set for answer in answers if answer.prediction_set is not None]
    if len(sets) != len(labels):
        return None
    held = [label in names for label, names in zip(labels, sets, strict=True)]
    return {"coverage": float(np.mean(held)), "size": float(np.mean([len(s) for s in sets]))}


def _labelled(data: Path, volumes: bool) -> Iterator[tuple[Path, str]]:
    """Test images with their classes."""
    if data.is_file():
        image_set = load_csv(data)
        for sample in image_set.samples:
            if sample.split == "test":
                yield image_set.root / sample.file, sample.label
        return
    folder = data / "test" if (data / "test").is_dir() else data
    classes = sorted(p for p in folder.glob("[!.]*") if p.is_dir())
    if not classes:
        raise DataError(f"{data}: no class folders; expected test/<class>/* or <class>/*")
    for entry in classes:
        for file in image_files(entry, volumes):
            yield file, entry.name


# Short, so that the table fits a terminal of 80 columns; the report has the long ones.
_HEADINGS = {
    "average_accuracy": "accuracy\naverage",
    "last_accuracy": "\nlast",
    "average_mean_class_recall": "recall\naverage",
    "last_mean_class_recall": "\nlast",
    "forgetting_accuracy": "\nforgetting",
    "gmacs": "\nGMACs",
    "parameters": "million\nweights",
}


def _table(results: dict[str, Any]) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        title=results["name"],
        caption="accuracy, mean class recall, forgetting: in %",
    )
    table.add_column("\nvariant", no_wrap=True)
    for key in COLUMNS:
        table.add_column(_HEADINGS[key], justify="right", no_wrap=True)
    for row in comparison_table(results):
        table.add_row(row["variant"], *(write(row[key]) for key, (_, write) in COLUMNS.items()))
    return table
