"""A small experiment: six classes of 32 x 32 pixel patterns in three tasks, and runs of it."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import yaml
from PIL import Image

from dynammo.errors import DynammoError

T = TypeVar("T")
CLASSES = ("amber", "birch", "coral", "dusk", "ember", "fern")
PARAMS: dict[str, Any] = {
    "seed": 3,
    "device": "cpu",
    "data": {"name": "shapes", "source": "folder"},
    "scenario": {"classes_per_task": 2, "class_order": "sorted"},
    "image": {"size": 48},
    "backbone": {"name": "test_resnet", "pretrained": False},
    "train": {"epochs": 2, "batch_size": 8},
    "memory": {"per_class": 4},
    "head": {"epochs": 5},
    "gate": {"min_last_recall": 0.0, "max_gap_to_unmerged": 1.0},
    "tracking": {"onnx_graph": False},  # seconds each; GRAPH asks for one
}
OVERRIDES: dict[str, Any] = {
    **{
        key: PARAMS[key] for key in ("seed", "device", "image", "backbone", "train", "head", "gate")
    },
    "memory.per_class": 4,
    "tracking.register_model": False,
    "tracking.onnx_graph": False,
}
GRAPH = {"tracking.onnx_graph": True}
TASKS = [list(CLASSES[start : start + 2]) for start in (0, 2, 4)]


def states(lines: Iterable[str]) -> dict[str, list[str]]:
    """Name of each task run in a log -> the states it finished in: Completed or Cached."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if match := re.search(r"Task run '(.+)' - Finished in state (\w+)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def steps(states: dict[str, T]) -> dict[str, T]:
    """The tasks that are cached: all but those that look after data, MLflow and results."""
    always = r"version data|prepare images|open MLflow|track|publish|register|close"
    return {name: state for name, state in states.items() if not re.match(always, name)}


class _Lines(logging.Handler):
    """Collects a log as the terminal would show it; tracebacks too."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        run = getattr(record, "task_run_name", "")
        self.lines += f"Task run '{run}' - {self.format(record)}".splitlines()


@dataclass(frozen=True)
class Project:
    """A folder to run the flow in: its parameters, results, MLflow database and artifacts."""

    folder: Path
    params: Path

    @property
    def results(self) -> Path:
        return self.folder / "results" / "shapes"

    def read(self, name: str) -> Any:
        """A JSON file of the results."""
        return json.loads((self.results / name).read_text())

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Inside the folder, with its MLflow database."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{self.folder / 'mlflow.db'}")
            yield

    def run(self, **overrides: Any) -> dict[str, str]:
        """Run the flow; the state that each task run finished in."""
        lines = self.log(**overrides)
        assert not [line for line in lines if "Traceback" in line]
        found = states(lines)
        assert all(len(ended) == 1 for ended in found.values())
        return {name: state for name, (state,) in found.items()}

    def log(self, **overrides: Any) -> list[str]:
        """Run the flow, whatever becomes of it; what its tasks logged."""
        from flows.incremental import incremental

        handler, logger = _Lines(), logging.getLogger("prefect.task_runs")
        logger.addHandler(handler)
        try:
            incremental(str(self.params), {k.replace("__", "."): v for k, v in overrides.items()})
        except DynammoError as error:
            handler.lines.append(f"flow: {error}")
        finally:
            logger.removeHandler(handler)
        return handler.lines


def new_project(folder: Path, pictures: Path, database: Path) -> Project:
    """The experiment in a folder of its own, not run yet."""
    shutil.copy(database, folder / "mlflow.db")
    params = {**PARAMS, "data": {**PARAMS["data"], "path": str(pictures)}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(params))
    return Project(folder, folder / "tiny.yaml")


def write_pictures(folder: Path) -> None:
    """`train/<class>/*.png` and `test/<class>/*.png`: 8 and 4 noisy waves of each class."""
    for index, name in enumerate(CLASSES):
        generator = np.random.default_rng(index)
        colour = generator.integers(60, 200, 3)
        wave = 40 * np.sin(np.arange(32) * (0.3 + 0.3 * (index % 3)))
        pattern = np.broadcast_to(wave, (32, 32)) if index % 2 else wave[:, None].repeat(32, 1)
        for number in range(12):
            file = folder / ("train" if number < 8 else "test") / name / f"{number:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = colour + pattern[..., None] + generator.normal(0, 20, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)


def copier(root: Path, pictures: Path) -> Callable[..., Path]:
    """A function that copies some classes' pictures into a batch, as they would arrive."""

    def copy(name: str, classes: list[str], numbers: range = range(12), tests: bool = True) -> Path:
        for file in sorted(pictures.rglob("*.png")):
            split = file.parent.parent.name
            wanted = file.parent.name in classes and int(file.stem) in numbers
            if wanted and (split == "train" or tests):
                target = root / name / file.relative_to(pictures)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, target)
        return root / name

    return copy


@contextmanager
def apart(root: Path, database: Path) -> Iterator[None]:
    """With learners and an MLflow database in a folder of their own."""
    shutil.copy(database, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYNAMMO_LEARNERS", str(root / "learners"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        yield
