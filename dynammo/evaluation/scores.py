"""Scores of every stage as one table, from which every metric follows: ours, or another program's.

A CSV file, gzipped where its name ends in .gz, a row a test image and stage:

    stage,file,actual,predicted,confidence,knownness,score:NV,score:MEL,...
    1,test/a.jpg,NV,NV,0.91,0.7,0.91,0.09,
    2,test/a.jpg,NV,MEL,...

`stage` (from 1), `file` and a `score:CLASS` for every class must be there; the score of a class
that is not learnt yet is empty. Where the others are empty or not there, the highest score decides
`predicted`, and is `confidence` and `knownness`. Images of classes that are not learnt yet serve as
unknowns.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynammo.checkpoint import write_atomically
from dynammo.data.checks import finite
from dynammo.errors import DataError
from dynammo.evaluation.metrics import Predictions, evaluate_stage, summarise

SCORE = "score:"


def write_scores(
    path: Path, stages: Sequence[Predictions], files: Sequence[str], names: Sequence[str]
) -> None:
    """Write what a classifier said after each task; `read_scores` gives it back to the last bit.

    Args:
        path: .csv, or .csv.gz; the same scores give the same bytes.
        stages: one entry a task, each of the same N images.
        files: (N,) their names.
        names: all classes, in order of arrival.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    own = ["actual", "predicted", "confidence", "knownness"]
    writer.writerow(["stage", "file", *own, *(SCORE + name for name in names)])
    for number, stage in enumerate(stages, 1):
        unknown = [""] * (len(names) - stage.classes)
        for i, file in enumerate(files):
            values = [stage.confidence[i], stage.knownness[i], *stage.scores[i]]
            said = [names[stage.targets[i]], names[stage.predicted[i]]]
            writer.writerow([number, file, *said, *map(_exact, values), *unknown])
    content = text.getvalue().encode()
    write_atomically(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def write_predictions(
    path: Path, stage: Predictions, tests: Mapping[str, str], names: Sequence[str]
) -> None:
    """Write a row a test image: what it is, what was answered, and how surely.

    Args:
        path: of the CSV file.
        stage: answers to the images of `tests`, or to those of them that have a known class.
        tests: file -> class.
        names: all classes, in order of arrival.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "actual", "predicted", "confidence"])
    known = set(names[: stage.classes])
    files = [file for file in tests if len(tests) == len(stage.targets) or tests[file] in known]
    for file, predicted, confidence in zip(files, stage.predicted, stage.confidence, strict=True):
        writer.writerow([file, tests[file], names[predicted], f"{confidence:.4f}"])
    write_atomically(path, text.getvalue().encode())


def read_scores(
    path: Path, tests: Mapping[str, str], tasks: Sequence[Sequence[str]]
) -> list[Predictions]:
    """What a classifier said after each task.

    Args:
        path: of the table.
        tests: file -> class, of all N test images.
        tasks: classes of each task, in order of arrival.

    Returns:
        One entry a task: of all images, in the order of `tests`, or of those of known classes where
        the table has no others at this stage.

    Raises:
        DataError: the table cannot be read, or is not of these images, classes and stages; the
            first problem, with its line.
    """
    names = [name for task in tasks for name in task]
    counts = np.cumsum([len(task) for task in tasks]).tolist()
    found: list[dict[str, dict[str, Any]]] = [{} for _ in tasks]
    for line, row in _rows(path, ["stage", "file", *(SCORE + name for name in names)]):
        place = f"{path}, line {line}"
        stage, file = row["stage"], row["file"]
        if not stage.isdecimal() or not 1 <= int(stage) <= len(tasks):
            raise DataError(f"{place}: stage must lie in 1..{len(tasks)}, got {stage!r}")
        rows = found[int(stage) - 1]
        if file not in tests:
            raise DataError(f"{place}: {file!r} is no test image of this experiment")
        if file in rows:
            raise DataError(f"{place}: {file} has a second row at stage {stage}")
        if (row.get("actual") or tests[file]) != tests[file]:
            raise DataError(f"{place}: {file} is {tests[file]}, not {row['actual']}")
        rows[file] = _said(row, names, counts[int(stage) - 1], place)
    return [
        _stage(rows, tests, names, count, f"{path}, stage {number}")
        for number, (rows, count) in enumerate(zip(found, counts, strict=True), 1)
    ]


def measure_scores(stages: Sequence[Predictions], tasks: Sequence[Sequence[str]]) -> dict[str, Any]:
    """All metrics: `stages`, the documents of `evaluate_stage`, and their `summary`.

    Negative flips are none where the stage before was of fewer images.
    """
    documents = []
    before: Predictions | None = None
    for number, now in enumerate(stages, 1):
        same = before is not None and before.targets.shape == now.targets.shape
        documents.append(evaluate_stage(now, tasks, number, before if same else None))
        before = now
    return {"summary": summarise(documents), "stages": documents}


def _rows(path: Path, required: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    unpacked = gzip.decompress if path.suffix == ".gz" else bytes
    try:
        with io.StringIO(unpacked(path.read_bytes()).decode("utf-8-sig"), newline="") as stream:
            reader = csv.DictReader(stream, restval="", strict=True)
            if missing := [name for name in required if name not in (reader.fieldnames or [])]:
                raise DataError(f"{path} has no column {missing[0]!r}")
            for row in reader:
                if None in row:
                    raise DataError(f"{path}, line {reader.line_num}: more values than columns")
                yield reader.line_num, row
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from None


def _said(row: Mapping[str, str], names: Sequence[str], count: int, place: str) -> dict[str, Any]:
    """One row: numbers, and the place of the class that was chosen."""
    known = names[:count]
    scores = [_number(row[SCORE + name], SCORE + name, place) for name in known]
    if early := [name for name in names[count:] if row[SCORE + name].strip()]:
        raise DataError(f"{place}: {early[0]} is not learnt at this stage and has a score")
    best = max(range(count), key=scores.__getitem__)
    chosen = row.get("predicted") or known[best]
    if chosen not in known:
        raise DataError(f"{place}: predicted {chosen!r} is no class learnt at this stage")
    said: dict[str, Any] = {"scores": scores, "predicted": known.index(chosen)}
    for name in ("confidence", "knownness"):
        said[name] = _number(row[name], name, place) if row.get(name) else scores[best]
    if not 0 <= said["confidence"] <= 1 + 1e-6:
        raise DataError(
            f"{place}: confidence must lie in [0, 1], got {said['confidence']:g} (scores must be "
            "probabilities where there is no column confidence)"
        )
    return said


def _number(text: str, name: str, place: str) -> float:
    if (value := finite(text)) is None:
        raise DataError(f"{place}: {name} must be a finite number, got {text!r}")
    return value


def _stage(
    rows: Mapping[str, dict[str, Any]],
    tests: Mapping[str, str],
    names: Sequence[str],
    count: int,
    place: str,
) -> Predictions:
    known = {file for file, label in tests.items() if label in names[:count]}
    if missing := [file for file in tests if file in known and file not in rows]:
        raise DataError(
            f"{place}: {missing[0]} and {len(missing) - 1} more test images are missing"
        )
    others = [file for file in rows if file not in known]
    if others and len(rows) < len(tests):
        left = next(file for file in tests if file not in rows)
        raise DataError(f"{place}: of the classes to come all images or none, {left} is missing")
    files = [file for file in tests if file in rows]
    return Predictions(
        targets=np.array([names.index(tests[file]) for file in files]),
        predicted=np.array([rows[file]["predicted"] for file in files]),
        scores=np.array([rows[file]["scores"] for file in files], dtype=np.float32),
        confidence=np.array([rows[file]["confidence"] for file in files], dtype=np.float32),
        knownness=np.array([rows[file]["knownness"] for file in files], dtype=np.float32),
    )


def _exact(value: np.floating[Any]) -> str:
    """Nine digits tell every float32 apart."""
    return f"{value:.9g}"
