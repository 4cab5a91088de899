"""Nothing of the developer's is used: no Prefect or MLflow server, no `.dynammo`.

And what more than one package of tests needs, made once.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a core of its own
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import flows  # noqa: F401  (its settings must be there before Prefect and torch are imported)

# How long an example takes is the machine's business.
settings.register_profile("dynammo", deadline=None)
settings.load_profile("dynammo")

_HOME = tempfile.TemporaryDirectory(prefix="dynammo-tests-", ignore_cleanup_errors=True)
for _name in list(os.environ):
    if _name.startswith(("PREFECT_API_", "PREFECT_PROFILE", "MLFLOW_TRACKING_", "DVC_STAGE")):
        del os.environ[_name]
os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"  # a task may be called by itself
os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"  # nobody reads them there
os.environ["PREFECT_HOME"] = f"{_HOME.name}/prefect"
os.environ["DYNAMMO_HOME"] = f"{_HOME.name}/dynammo"


TESTS = Path(__file__).parent
# Longest first, by `--durations=0`.
LONGEST = [
    TESTS / name
    for name in (
        *("flows/test_learn.py", "flows/test_benchmark.py", "dynammo/deploy/test_export.py"),
        *("flows/test_resume.py", "hostile/test_servers.py", "flows/test_incremental.py"),
        *("flows/test_federate.py", "flows/test_plan.py", "dynammo/deploy/test_quantisation.py"),
    )
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, lest one worker of `make test` ends long after the other."""
    if gone := [str(file) for file in LONGEST if not file.is_file()]:
        raise pytest.UsageError(f"{__file__} names files that are gone: {', '.join(gone)}")

    def place(item: pytest.Item) -> tuple[int, bool]:
        place = LONGEST.index(item.path) if item.path in LONGEST else len(LONGEST)
        return place, item.path.is_relative_to(TESTS / "dynammo")

    items.sort(key=place)


@pytest.fixture(scope="session")
def prefect_server(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[None]:
    """A Prefect server, for tests that run a flow. Its start takes long: there is one a worker.

    Making its database takes longest: the first worker makes it, the others copy it. It keeps no
    record of tasks and events, which nobody reads here and which is most of its work.
    """
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL, temporary_settings

    made = _shared(tmp_path_factory, request) / "prefect.db"
    own = Path(os.environ["PREFECT_HOME"]) / "prefect.db"
    own.parent.mkdir(exist_ok=True)
    server = SubprocessASGIServer()
    with FileLock(f"{made}.lock"):
        if made.exists():
            shutil.copy(made, own)
        with pytest.MonkeyPatch.context() as patch:
            for service in ("EVENT_PERSISTER", "TASK_RUN_RECORDER", "TRIGGERS"):
                patch.setenv(f"PREFECT_SERVER_SERVICES_{service}_ENABLED", "false")
            server.start(timeout=180)
        if not made.exists():
            _back_up(own, made)
    with temporary_settings({PREFECT_API_URL: server.api_url}):
        yield
    server.stop()


@pytest.fixture(scope="session")
def migrated_database(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """An empty MLflow database: making one takes seconds, copying it none.

    One for all workers, who find it beside their own folders.
    """
    from tasks.support.mlflow.database import make_database

    path = _shared(tmp_path_factory, request) / "mlflow.db"
    make_database(path)
    return path


@pytest.fixture(scope="session")
def prefect_database(
    prefect_server: None, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """A Prefect database with all its tables, to copy for a server that a test starts itself."""
    return _shared(tmp_path_factory, request) / "prefect.db"


def _shared(factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder of all workers, beside their own."""
    root = factory.getbasetemp()
    return root.parent if hasattr(request.config, "workerinput") else root


def _back_up(database: Path, copy: Path) -> None:
    """Copy a database that is in use."""
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)


@pytest.fixture
def tracking(migrated_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MLflow records into this folder: mlflow.db and mlartifacts."""
    shutil.copy(migrated_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return tmp_path


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as `save_model` writes it; its answers mean nothing."""
    from tests.models import random_model

    classes = ["melanoma", "naevus", "keratosis"]
    folder = tmp_path_factory.mktemp("model")
    return random_model(folder, classes, provenance={"data": "d" * 64})
