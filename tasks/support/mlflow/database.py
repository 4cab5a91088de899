"""Make MLflow's SQLite database whole or not at all.

MLflow makes its tables in the file itself, which takes seconds, and cannot go on with what a killed
process left. So they are made in a file beside, which then takes the database's name.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import sqlalchemy
from filelock import FileLock


def make_database(path: Path) -> None:
    """Make the database, unless it is there; one that was left half made holds nothing and is
    replaced. Of several processes at once one makes it and the others wait.

    Args:
        path: the SQLite file; its folder is made if missing.

    Raises:
        OSError: the folder cannot be written to.
        sqlalchemy.exc.SQLAlchemyError: the file is no database, or cannot be opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if _is_made(path):
        return
    with FileLock(path.parent / f".{path.name}.lock"):
        if _is_made(path):
            return
        beside = path.parent / f".{path.name}.new"
        shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed: the lock is ours
        beside.mkdir()
        try:
            _fill(beside / path.name, artifacts=path.parent / "mlartifacts")
            (beside / path.name).replace(path)
        finally:
            shutil.rmtree(beside)


def _is_made(path: Path) -> bool:
    """MLflow's own experiment, the last that it puts into a new database, is there.

    Another program's tables count as made: they are not ours to replace.
    """
    if not path.exists():
        return False
    engine = sqlalchemy.create_engine(f"sqlite:///{path}", poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        tables = sqlalchemy.inspect(connection).get_table_names()
        if "experiments" not in tables:
            return bool(tables)
        found = connection.execute(sqlalchemy.text("SELECT 1 FROM experiments LIMIT 1")).first()
        return found is not None


def _fill(path: Path, artifacts: Path) -> None:
    # Imported here: it takes a second, which only the first run of all needs to spend.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"sqlite:///{path}", artifacts.as_uri())  # type: ignore[no-untyped-call]
    store.engine.dispose()  # else it holds the file under its first name
