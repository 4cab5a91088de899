"""The small experiment, run once for all tests that look at what it leaves."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.learn import learn
from tests.flows.project import (
    GRAPH,
    OVERRIDES,
    TASKS,
    Project,
    apart,
    copier,
    new_project,
    write_pictures,
)


@pytest.fixture(scope="session", autouse=True)
def coarse_figures() -> Iterator[None]:
    """Nobody looks at the figures of these reports, and sharp ones take longer than learning."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynammo.reporting.figures.DPI", 20)
        yield


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder)
    return folder


@pytest.fixture
def new(tmp_path: Path, pictures: Path, migrated_database: Path) -> Project:
    """The experiment, not run yet."""
    return new_project(tmp_path, pictures, migrated_database)


@pytest.fixture(scope="session")
def finished_once(
    tmp_path_factory: pytest.TempPathFactory,
    pictures: Path,
    migrated_database: Path,
    prefect_server: None,
) -> tuple[Project, dict[str, str]]:
    """The experiment, run from beginning to end, and the states of its task runs."""
    project = new_project(tmp_path_factory.mktemp("project"), pictures, migrated_database)
    with project.entered():
        return project, project.run()


@pytest.fixture
def finished(finished_once: tuple[Project, dict[str, str]]) -> Iterator[Project]:
    """The experiment after its first run; the test works inside its folder."""
    project, _ = finished_once
    with project.entered():
        yield project


@pytest.fixture
def here(tmp_path: Path, tracking: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, with MLflow and learners of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DYNAMMO_LEARNERS", str(tmp_path / "learners"))
    yield tmp_path


@pytest.fixture
def arrive(here: Path, pictures: Path) -> Callable[..., Path]:
    """Copy some classes' pictures into a batch, as they would arrive."""

    return copier(here, pictures)


@pytest.fixture(scope="session")
def begun_once(
    tmp_path_factory: pytest.TempPathFactory, pictures: Path, migrated_database: Path
) -> Path:
    """A learner that has learnt the first task. Its model has a graph, as users' have."""
    root = tmp_path_factory.mktemp("begun")
    with apart(root, migrated_database):
        batch = copier(root, pictures)("batch1", TASKS[0])
        learn("shapes", str(batch), None, OVERRIDES | GRAPH)
    return root / "learners"


@pytest.fixture
def begun(here: Path, begun_once: Path, arrive: Callable[..., Path]) -> Path:
    """The batch of the first task, which a learner to change has learnt."""
    shutil.copytree(begun_once, here / "learners")
    return arrive("batch1", TASKS[0])
