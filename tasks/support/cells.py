"""The cells of a grid: can they run, are they done, what have they come to?"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dynammo.checkpoint import to_json, write_atomically
from dynammo.checks import check_parts
from dynammo.config import Config
from dynammo.data.checks import check_image_set
from dynammo.data.samples import ImageSet
from dynammo.data.scenario import build_scenario
from dynammo.data.sources.loading import load_data
from dynammo.data.store import build_store
from dynammo.errors import ConfigError, DataError, DynammoError
from dynammo.evaluation.grid import Cell, Grid, plan, where
from dynammo.network.backbones import pretrained_weights
from tasks.prepare_backbone import weights_hash
from tasks.publish import check_output
from tasks.support.dvc import hint_if_missing
from tasks.support.workspace import IMAGES
from tasks.track import experiment_key


@dataclass(frozen=True)
class Known:
    """What is known of a cell before it runs: its key, and images and classes of every task."""

    key: str
    images: list[int]
    classes: list[int]
    image_set: ImageSet


def check_grid(grid: Grid, weights: bool = True) -> tuple[list[Cell], dict[str, Known]]:
    """The cells of a grid, and what is known of each before it runs.

    Raises:
        ConfigError: what would keep cells from running; all problems at once.
    """
    cells, problems = plan(grid)
    known, others = inspect(cells, weights)
    problems += [*others, *_missing_runner(grid), *_missing_scores(grid)]
    if problems:
        raise ConfigError(problems)
    return cells, known


def inspect(cells: Iterable[Cell], weights: bool = True) -> tuple[dict[str, Known], list[str]]:
    """Look at all that could keep cells from running, without running any.

    Data sets are listed and hashed once each; no image is decoded.

    Args:
        cells: of a grid.
        weights: whether pretrained weights must be at hand, too (they may have to be downloaded).

    Returns:
        Cell name -> what is known of it, and all problems, each once with the cells that have it.
    """
    known: dict[str, Known] = {}
    problems: dict[str, list[str]] = {}
    memory: dict[str, Any] = {}

    def once(what: str, settings: Any, make: Any) -> Any:
        """The result of `make()`, or the error that it ended with, for these settings."""
        key = f"{what} {json.dumps(settings, sort_keys=True)}"
        if key not in memory:
            try:
                memory[key] = make()
            except DynammoError as error:
                memory[key] = error
        return memory[key]

    for cell in cells:
        config = cell.config
        values = config.model_dump(mode="json")
        results = [
            once("output", values["output"], lambda c=config: check_output(c.output_dir)),
            once(
                "parts",
                {**values, "seed": 0, "output": "", "data": 0},
                lambda c=config: check_parts(c),
            ),
            once("file", values["backbone"], lambda c=config: weights_hash(c.backbone)),
        ]
        if weights:
            results.append(
                once(
                    "weights",
                    values["backbone"],
                    lambda c=config: pretrained_weights(c.backbone) and None,
                )
            )
        image_set = once("data", {**values["data"], "name": ""}, lambda c=config: _load(c))
        if isinstance(image_set, ImageSet):
            parts = [values[part] for part in ("data", "scenario", "memory", "seed")]
            scenario = once(
                "scenario",
                parts,
                lambda c=config, i=image_set: build_scenario(i, c.scenario, c.memory, c.seed),
            )
            results.append(scenario)
        else:
            results.append(image_set)
        errors = [result for result in results if isinstance(result, DynammoError)]
        for error in errors:
            for problem in _shortened(getattr(error, "problems", [str(error)])):
                problems.setdefault(problem, []).append(f"{cell.data}/{cell.column}")
        if not errors:
            known[cell.name] = Known(
                cell_key(config, image_set.content_hash),
                [len(scenario.train(task)) for task in scenario],
                [len(task.classes) for task in scenario],
                image_set,
            )
    return known, [problem + where(places) for problem, places in problems.items()]


def cell_key(config: Config, data_hash: str) -> str:
    """What a cell's results follow from: settings, images, weights file, code and versions."""
    return experiment_key(config, data_hash, weights_hash(config.backbone))


def decode(cells: Iterable[Cell], known: Mapping[str, Known], progress: Any = None) -> None:
    """Decode the images of some cells, each data set and size once.

    Before cells run side by side: they would all do it.
    """
    done = set()
    for cell in cells:
        image_set, config = known[cell.name].image_set, cell.config
        if (what := (image_set.content_hash, config.image.form)) not in done:
            build_store(image_set, config.image.form, IMAGES, progress, config.data.repeats)
            done.add(what)


def record(folder: Path, key: str, seconds: float) -> None:
    """Note beside a cell's results folder what they follow from, and their hash."""
    content = (folder / "results.json").read_bytes()
    write_atomically(
        _note(folder),
        to_json(
            {
                "key": key,
                "results": hashlib.sha256(content).hexdigest(),
                "seconds": round(seconds, 1),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
        ),
    )


def finished(folder: Path, key: str) -> bool:
    """Whether a cell's results and predictions are there, and would come out the same."""
    return read(folder, key) is not None


def read(folder: Path, key: str) -> dict[str, Any] | None:
    """A finished cell's results document, with the `seconds` it took; none if not finished."""
    try:
        note = json.loads(_note(folder).read_text(encoding="utf-8"))
        content = (folder / "results.json").read_bytes()
        if note["key"] != key or note["results"] != hashlib.sha256(content).hexdigest():
            return None
        document = {**json.loads(content), "seconds": note["seconds"]}
        predictions = [
            folder / "predictions" / f"{name}.csv" for name in document["config"]["methods"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return document if all(file.is_file() for file in predictions) else None


def _note(folder: Path) -> Path:
    """Beside the folder: what is in it is replaced as a whole."""
    return folder.with_name(f"{folder.name}.json")


def _shortened(problems: list[str], most: int = 10) -> list[str]:
    """A data set may have a problem an image: they must not hide those of the others."""
    more = len(problems) - most
    return problems if more <= 0 else [*problems[:most], f"... and {more} more of this kind"]


def _load(config: Config) -> ImageSet:
    path = Path(config.data.path)
    try:
        image_set = load_data(config)
        check_image_set(image_set, config.data.repeats)
    except DataError as error:
        *others, last = error.problems
        raise DataError([*others, f"{last}{hint_if_missing(path)}"]) from None
    return image_set


def _missing_scores(grid: Grid) -> list[str]:
    there = {column for _, column, _, file in grid.others() if file}
    first = f"{next(iter(grid.data))}/{grid.seeds[0]}.csv"
    return [
        f"scores: {folder} has no table for {column}, such as {first}"
        for column, folder in grid.scores.items()
        if column not in there
    ]


def _missing_runner(grid: Grid) -> list[str]:
    package = {"dask": "prefect_dask", "ray": "prefect_ray"}.get(grid.runner)
    if package is None or find_spec(package):
        return []
    return [f"runner {grid.runner} needs {package}: .venv/bin/uv pip install -e '.[distributed]'"]
