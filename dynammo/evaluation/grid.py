"""A grid: data sets x methods x seeds, each cell an experiment of its own.

Read from a small YAML file (benchmarks/grids/). A cell is the base configuration with the overrides
of its data set, then those of its method, then those common to all, then its seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from dynammo.config import Config, Section, layered, load_config
from dynammo.config.documents import read_yaml
from dynammo.errors import ConfigError, shown
from dynammo.methods import METHODS
from dynammo.network.cost import count_macs
from dynammo.network.network import build_network

Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
SEEDS = [1, 50, 42, 100, 1993]  # those of the published protocols
REPORT = "report"  # the folder beside those of the data sets


class Grid(Section):
    """What a grid file says."""

    name: Label = Field(description="of the grid; default: the file's")
    base: str | None = Field(None, description="configuration of all cells; default: none")
    data: dict[Label, dict[str, Any]] = Field(
        min_length=1,
        description="data set -> overrides, such as data.path; `base` names a configuration that "
        "takes the place of the grid's",
    )
    methods: dict[Label, dict[str, Any]] = Field(
        min_length=1,
        description="a list of methods, or column -> overrides; a column that is not called like "
        "a method names one: {merged-paper: {methods: [merged], preset: paper}}",
    )
    overrides: dict[str, Any] = Field(default_factory=dict, description="for all cells")
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(SEEDS, min_length=1)
    reference: str | None = Field(
        None, description="the column that others are compared with; default: unmerged, or merged"
    )
    scores: dict[Label, str] = Field(
        default_factory=dict,
        description="column -> folder of another program's scores, <data set>/<seed>.csv in it",
    )
    runner: Literal["sequential", "process", "dask", "ray"] = Field(
        "sequential", description="where cells run; dask and ray need the extra `distributed`"
    )
    workers: int = Field(1, ge=1, description="cells at a time, each in a process of its own")
    address: str | None = Field(
        None, description="of a Dask or Ray cluster; default: one is started on this machine"
    )
    output: str | None = Field(None, description="folder; default: results/<name>")
    gmacs_per_second: float = Field(
        100.0, gt=0, description="assumed by --dry-run: billion multiply-adds a second"
    )

    @model_validator(mode="before")
    @classmethod
    def _columns_by_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(methods := values.get("methods"), list):
            if repeated := sorted({str(name) for name in methods if methods.count(name) > 1}):
                raise ValueError(f"methods names {', '.join(repeated)} twice")
            values = {**values, "methods": dict.fromkeys(methods)}
        for key in ("data", "methods"):
            if isinstance(values, dict) and isinstance(entries := values.get(key), dict):
                filled = {name: {} if entry is None else entry for name, entry in entries.items()}
                values = {**values, key: filled}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Grid:
        problems = []
        for name, overrides in self.methods.items():
            chosen = overrides.get("methods", [name])
            if not isinstance(chosen, list) or len(chosen) != 1:
                problems.append(f"methods.{name}: a column is one method, got {chosen!r}")
            elif chosen[0] not in METHODS:
                known = ", ".join(METHODS)
                problems.append(f"methods.{name}: unknown method {chosen[0]!r}; known: {known}")
        if len(set(self.seeds)) != len(self.seeds):
            problems.append(f"seeds names one twice: {self.seeds}")
        if self.reference is not None and self.reference not in self.methods:
            problems.append(f"reference {self.reference!r} is not among {', '.join(self.methods)}")
        if both := sorted(set(self.scores) & set(self.methods)):
            problems.append(f"scores: {', '.join(both)} is a column of methods, too")
        if REPORT in self.data:
            problems.append(f"data: {REPORT!r} is the folder of the report; choose another name")
        if self.runner == "sequential" and self.workers > 1:
            problems.append(f"workers: {self.workers} need a runner: process, dask or ray")
        if self.address is not None and self.runner not in ("dask", "ray"):
            problems.append(f"address is of a Dask or Ray cluster, but runner is {self.runner}")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def folder(self) -> Path:
        """Where cells and report go."""
        return Path(self.output or f"results/{self.name}")

    @property
    def experiment(self) -> str:
        """The MLflow experiment of the grid and all its cells."""
        return f"dynammo-benchmark-{self.name}"

    @property
    def compared_with(self) -> str:
        """The column that others are compared with."""
        usual = (name for name in ("unmerged", "merged") if name in self.methods)
        return self.reference or next(usual, next(iter(self.methods)))

    def others(self) -> Iterator[tuple[str, str, int, Path | None]]:
        """Data set, column and seed of another program's cells, and their table if it is there."""
        for column, folder in self.scores.items():
            for data in self.data:
                for seed in self.seeds:
                    files = [Path(folder, data, f"{seed}.csv{end}") for end in ("", ".gz")]
                    yield data, column, seed, next((it for it in files if it.is_file()), None)

    def method(self, column: str) -> str:
        """The method of a column."""
        return str(self.methods[column].get("methods", [column])[0])


@dataclass(frozen=True)
class Cell:
    """One experiment of a grid; its results go into `config.output_dir`."""

    data: str
    column: str
    seed: int
    config: Config

    @property
    def name(self) -> str:
        """`skin8/merged/1`."""
        return f"{self.data}/{self.column}/{self.seed}"


def load_grid(
    file: str | Path,
    *,
    data: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    paths: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    scores: Mapping[str, str] | None = None,
    **settings: Any,
) -> Grid:
    """Read a grid file, and narrow or change it.

    Args:
        file: YAML with the keys of `Grid`.
        data: of its data sets these only.
        methods: of its columns these only.
        seeds: instead of its own.
        paths: data set -> `data.path`.
        overrides: for all cells; they win over those of the file.
        scores: columns of other programs, in addition to the file's.
        settings: other keys of `Grid` that win over the file where they are not none.

    Raises:
        ConfigError: the file is missing or not YAML, or says what makes no sense; all problems at
            once.
    """
    values = _read(Path(file))
    values.setdefault("name", Path(file).stem)
    values |= {key: value for key, value in settings.items() if value is not None}
    if scores:
        values["scores"] = {**(values.get("scores") or {}), **scores}
    try:
        grid = Grid.model_validate(values)
    except ValidationError as error:
        raise ConfigError([line for item in error.errors() for line in _lines(item)]) from None
    problems = []
    for kind, wanted, there in (
        ("data set", [*(data or []), *(paths or {})], grid.data),
        ("method", methods or [], grid.methods),
    ):
        unknown = sorted(set(wanted) - set(there))
        problems += [
            f"{file} has no {kind} {name!r}; it has {', '.join(there)}" for name in unknown
        ]
    if problems:
        raise ConfigError(problems)
    chosen: dict[str, Any] = {
        "data": {
            name: layered(entry, {"data.path": paths[name]} if paths and name in paths else {})
            for name, entry in grid.data.items()
            if not data or name in data
        },
        "methods": {n: entry for n, entry in grid.methods.items() if not methods or n in methods},
        "seeds": list(seeds or grid.seeds),
        "overrides": layered(grid.overrides, overrides or {}),
    }
    if grid.reference not in chosen["methods"]:
        chosen["reference"] = None
    return grid.model_copy(update=chosen)


def plan(grid: Grid) -> tuple[list[Cell], list[str]]:
    """The cells of a grid, in the order they are run, and what is wrong with their configuration.

    One worker goes seed by seed, so that an unfinished grid holds whole comparisons. Several go
    method by method: cells run at the same time then differ in seed or data, and train nothing that
    another of them is about to have in the cache.

    Returns:
        The cells that have a valid configuration, and all problems of the others, each once.
    """
    cells: list[Cell] = []
    problems: dict[str, list[str]] = {}
    same: dict[str, str] = {}
    for name in grid.data:
        for column in grid.methods:
            for seed in grid.seeds:
                try:
                    cell = Cell(name, column, seed, _config(grid, name, column, seed))
                except ConfigError as error:
                    for problem in error.problems:
                        problems.setdefault(problem, []).append(f"{name}/{column}")
                    break
                twin = cell.config.model_dump_json(exclude={"output"})
                if twin in same:
                    problems.setdefault(f"{cell.name} and {same[twin]} are the same", [])
                same[twin] = cell.name
                cells.append(cell)
    data, columns, seeds = list(grid.data), list(grid.methods), list(grid.seeds)

    def turn(cell: Cell) -> tuple[int, int, int]:
        place = data.index(cell.data), columns.index(cell.column), seeds.index(cell.seed)
        return (
            (place[2], place[0], place[1]) if grid.workers == 1 else (place[1], place[0], place[2])
        )

    wrong = [problem + where(places) for problem, places in problems.items()]
    return sorted(cells, key=turn), wrong


def where(places: Iterable[str]) -> str:
    """What follows a problem that several cells have: `(skin8/merged and 3 more)`."""
    first, *others = [*dict.fromkeys(places)] or [""]
    more = f" and {len(others)} more" if others else ""
    return f" ({first}{more})" if first else ""


def estimate_gmacs(config: Config, images: Sequence[int], classes: Sequence[int]) -> float:
    """Billions of multiply-adds to learn a scenario, roughly.

        sum over tasks of MACs * images * epochs * 3

    The backward pass is taken to cost twice the forward one. A method that trains no network takes
    one pass instead of 3 * epochs. What is frozen before the first adapter, or in the cache
    already, costs less. A method that replays exemplars in every step costs up to three times as
    much, and a teacher's passes a third more. Test images and the head are not counted.

    Args:
        config: with one method.
        images: training images of each task.
        classes: classes of each task.
    """
    about = METHODS[config.methods[0]].about
    total, seen, classes_seen = 0.0, 0, 0
    for count, new in zip(images, classes, strict=True):
        memory = config.memory.size or (config.memory.per_class or 0) * classes_seen
        kept = min(memory, seen)  # of smaller images a method's own choice has more
        old = {"none": 0, "exemplars": kept, "own": kept, "all": seen}[about.memory]
        total += count + old
        seen, classes_seen = seen + count, classes_seen + new
    passes = 3 * config.train.epochs if trains(config.methods[0]) else 1
    return (
        _macs(config.model_dump_json(include={"backbone", "image", "adapter"}))
        * total
        * passes
        / 1e9
    )


def trains(method: str) -> bool:
    """Whether a method goes through its training images epoch by epoch."""
    return "train" in METHODS[method].sections


@lru_cache
def _macs(settings: str) -> int:
    """Multiply-adds of one image through backbone and adapter. Their settings, as JSON."""
    config = Config.model_validate(json.loads(settings))
    network = build_network(config.backbone, None, config.image.form, config.adapter)
    return count_macs(network, config.image.form)


def _config(grid: Grid, name: str, column: str, seed: int) -> Config:
    of_data = dict(grid.data[name])
    base = of_data.pop("base", grid.base)
    return load_config(
        base,
        layered(
            # Cells are for comparing: a grid fills no registry and exports nothing unless told to.
            {"data.name": name, "tracking.register_model": False, "tracking.onnx_graph": False},
            of_data,
            {"methods": [grid.method(column)]},
            grid.methods[column],
            grid.overrides,
            {
                "seed": seed,
                "output": str(grid.folder / name / column / str(seed)),
                "tracking.experiment": grid.experiment,
            },
        ),
    )


def _read(file: Path) -> dict[str, Any]:
    values = read_yaml(file)
    if not isinstance(values, dict):
        raise ConfigError([f"{file} must hold keys like 'data:', got {type(values).__name__}"])
    return values


def _lines(item: Any) -> list[str]:
    """One of pydantic's findings as readable lines."""
    where_ = ".".join(str(part) for part in item["loc"] if part != "[key]")
    if item["type"] == "extra_forbidden":
        return [f"{where_}: unknown key; known: {', '.join(Grid.model_fields)}"]
    if item["type"] == "value_error":
        return str(item["ctx"]["error"]).split("\n")
    if item["type"] == "missing":
        return [f"{where_}: is missing"]
    return [f"{where_}: {item['msg']} (got {shown(item['input'])})"]
