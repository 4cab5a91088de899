"""Flower, for tests that need it: it has a Python of its own (docs/how-to/federated.md)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOWER = os.environ.get("DYNAMMO_FLOWER_PYTHON", sys.executable)
HAS_FLOWER = not subprocess.run(
    [FLOWER, "-c", "import flwr, ray"], check=False, capture_output=True
).returncode
needs_flower = pytest.mark.skipif(
    not HAS_FLOWER, reason="no Flower: set DYNAMMO_FLOWER_PYTHON (docs/how-to/federated.md)"
)


def environment(here: Path) -> dict[str, str]:
    """Of a process with Flower, whose own files go into a folder."""
    return {
        **os.environ,
        "FLWR_HOME": str(here / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(FLOWER).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
