"""Write answers while they come: CSV, JSON, JSON lines, Parquet."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from textwrap import indent
from typing import IO, TYPE_CHECKING, Any, TextIO

from dynammo.checkpoint import written_atomically
from dynammo.clinical import read_rows
from dynammo.data.checks import problems_of_columns
from dynammo.errors import ConfigError, DataError
from dynammo.extras import needs

if TYPE_CHECKING:
    from dynammo.deploy.answers import Answer, Answering

    Write = Callable[[str, Answer | DataError], None]

_GROUP = 10_000  # rows of a Parquet file that are held at a time


class Format(StrEnum):
    """How answers are written."""

    csv = "csv"
    json = "json"
    jsonl = "jsonl"
    parquet = "parquet"


def format_of(output: Path | None, asked: Format | None) -> Format:
    """What is asked for, or what the name of a file says of its format, or CSV.

    Raises:
        ConfigError: Parquet for standard output.
    """
    suffix = output.suffix.lower().lstrip(".") if output else ""
    found = asked or (Format(suffix) if suffix in set(Format) else Format.csv)
    if found is Format.parquet and output is None:
        raise ConfigError(["parquet is no text: give it a file with --output"])
    return found


def clinical_of(
    path: Path | None, predictor: Answering, files: Sequence[Path]
) -> list[dict[str, str]]:
    """What a CSV says of each image, by column; of images that it does not list nothing.

    Raises:
        ConfigError: the model goes by images alone.
        DataError: of the CSV (`dynammo.clinical.read_rows`), or it lists none of the images.
    """
    if path is None:
        return []
    if predictor.clinical is None:
        raise ConfigError(["--clinical: this model goes by images alone"])
    rows = read_rows(path, predictor.clinical)
    found = [rows.get(file.absolute(), {}) for file in files]
    if not any(found):
        asked = ", ".join(predictor.clinical.names)
        raise DataError(f"{path} says nothing of these images: expected file and some of {asked}")
    return found


@contextmanager
def answers_to(
    output: Path | None, format_: Format, classes: Sequence[str], more: Sequence[str]
) -> Iterator[Write]:
    """A function `write(file, answer)`; a file appears when the block ends without an error.

    A row has the file and its label, probability, prediction set, whether it seems to be of no
    known class, and probabilities by class, or the error that says why there are none. In CSV the
    probabilities are a column a class, and there is none for what the model does not give; in
    Parquet they are a map.

    Args:
        output: a file; none: standard output.
        format_: of the rows.
        classes: of the model.
        more: which of `prediction_set` and `unknown` it gives.

    Raises:
        MissingExtra: Parquet without pyarrow.
        ConfigError: CSV for a model with a class called like another column; no such model can be
            learnt any more.
    """
    if format_ is Format.parquet and output is not None:
        with needs("pipeline", "pyarrow"):
            import pyarrow.parquet  # noqa: F401
        with written_atomically(output) as file, _parquet(file) as write:
            yield write
        return
    if format_ is Format.csv and (wrong := problems_of_columns(classes)):
        raise ConfigError([f"{own}, or ask for --format json" for own in wrong])
    tables: dict[Format, Callable[[TextIO], AbstractContextManager[Write]]] = {
        Format.csv: partial(_csv, classes=classes, more=more),
        Format.json: _json,
        Format.jsonl: _json_lines,
    }
    writing = tables[format_]
    if output is None:
        with writing(sys.stdout) as write:
            yield write
        return
    with written_atomically(output) as file:
        text = TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        with writing(text) as write:
            yield write
        text.detach()  # the file is closed by who opened it


@contextmanager
def _csv(text: TextIO, classes: Sequence[str], more: Sequence[str]) -> Iterator[Write]:
    writer = csv.writer(text, lineterminator="\n")
    columns = ["label", "probability", *more, *classes]
    writer.writerow(["file", *columns, "error"])

    def write(file: str, answer: Answer | DataError) -> None:
        if isinstance(answer, DataError):
            writer.writerow([file, *[""] * len(columns), str(answer)])
            return
        given = {
            "prediction_set": "; ".join(answer.prediction_set or []),
            "unknown": str(answer.unknown).lower(),
        }
        own = [given[name] for name in more]
        shares = [f"{answer.probabilities[name]:.6f}" for name in classes]
        writer.writerow([file, answer.label, f"{answer.probability:.6f}", *own, *shares, ""])

    yield write


@contextmanager
def _json(text: TextIO) -> Iterator[Write]:
    before = "[\n"

    def write(file: str, answer: Answer | DataError) -> None:
        nonlocal before
        text.write(before + indent(json.dumps(_row(file, answer), indent=2), "  "))
        before = ",\n"

    yield write
    text.write("[]\n" if before == "[\n" else "\n]\n")


@contextmanager
def _json_lines(text: TextIO) -> Iterator[Write]:
    def write(file: str, answer: Answer | DataError) -> None:
        text.write(json.dumps(_row(file, answer)) + "\n")

    yield write


@contextmanager
def _parquet(file: IO[bytes]) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {
            "file": pa.string(),
            "label": pa.string(),
            "probability": pa.float64(),
            "probabilities": pa.map_(pa.string(), pa.float64()),
            "prediction_set": pa.list_(pa.string()),
            "unknown": pa.bool_(),
            "error": pa.string(),
        }
    )
    rows: list[dict[str, Any]] = []
    with pq.ParquetWriter(file, schema) as table:

        def write(name: str, answer: Answer | DataError) -> None:
            rows.append(_row(name, answer))
            if len(rows) >= _GROUP:
                table.write_table(pa.Table.from_pylist(rows, schema))
                rows.clear()

        yield write
        table.write_table(pa.Table.from_pylist(rows, schema))


def _row(file: str, answer: Answer | DataError) -> dict[str, Any]:
    if isinstance(answer, DataError):
        return {"file": file, "error": str(answer)}
    return {"file": file, **answer._asdict()}
