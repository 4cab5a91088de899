"""Evidently's report on new images beside held-out ones.

Evidently (https://docs.evidentlyai.com) cannot be imported beside pandas 3, so it has an
environment of its own, whose Python DYNAMMO_EVIDENTLY_PYTHON names.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dynammo.errors import DynammoError
from dynammo.evaluation.monitoring import Seen
from tasks.support import evidently_page

PYTHON = "DYNAMMO_EVIDENTLY_PYTHON"
_INSTALL = "python -m venv ev; ev/bin/pip install evidently 'pandas<3'"
_SECONDS = 600


def python_with_evidently() -> str:
    """The Python that DYNAMMO_EVIDENTLY_PYTHON names.

    Raises:
        DynammoError: it names none, or one without Evidently.
    """
    if not (python := os.environ.get(PYTHON)):
        raise DynammoError(f"{PYTHON} must name the Python of an Evidently: {_INSTALL}")
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('evidently') is None)"
    try:
        lacks = subprocess.run([python, "-I", "-c", code], capture_output=True, check=False)
    except OSError as error:
        raise DynammoError(f"{PYTHON}: cannot run {python}: {error.strerror}") from None
    if lacks.returncode:
        raise DynammoError(f"{PYTHON}: {python} has no Evidently: {_INSTALL}")
    return python


def evidently_report(python: str, reference: Seen, new: Seen, classes: Sequence[str]) -> bytes:
    """An HTML page: have answers, or distances to the nearest class, drifted?

    Args:
        python: what `python_with_evidently` gave.
        reference: held-out images.
        new: those to compare.
        classes: names.

    Raises:
        DynammoError: Evidently fails.
    """
    tables = {
        name: {
            "answer": [classes[answer] for answer in seen.answers],
            "distance to the nearest class": seen.distances.tolist(),
        }
        for name, seen in (("reference", reference), ("new", new))
    }
    with tempfile.TemporaryDirectory() as temporary:
        page = Path(temporary) / "page.html"
        made = subprocess.run(
            [python, "-I", evidently_page.__file__, str(page)],
            input=json.dumps(tables),
            text=True,
            capture_output=True,
            check=False,
            timeout=_SECONDS,
            env={**os.environ, "DO_NOT_TRACK": "1"},  # Evidently counts its users otherwise
        )
        if made.returncode:
            last = (made.stderr.strip().splitlines() or [f"status {made.returncode}"])[-1]
            raise DynammoError(f"Evidently failed: {last}")
        return page.read_bytes()
