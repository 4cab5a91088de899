"""The library by itself: its public names, and what it says where an extra is not installed."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import dynammo
from dynammo.data.sources.about import about, written_sources
from dynammo.errors import DataError, expected_line
from dynammo.extras import MissingExtra, needs

ROOT = Path(__file__).parents[2]


def alone(code: str) -> str:
    """What some code prints in a process of its own."""
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not told.returncode, told.stderr
    return told.stdout.strip()


def test_the_public_names() -> None:
    assert dynammo.__all__ == sorted(dynammo.__all__, key=lambda n: (not n.isupper(), n))
    for name in dynammo.__all__:
        where = dynammo._MODULES[name]
        assert getattr(dynammo, name) is getattr(import_module(where), name)
        text = (ROOT / "dynammo" / "__init__.py").read_text(encoding="utf-8")
        assert f"    from {where} import {name}\n" in text  # what type checkers read
    assert dynammo._MODULES.keys() == set(dynammo.__all__) <= set(dir(dynammo))
    with pytest.raises(AttributeError, match="module 'dynammo' has no attribute 'nothing'"):
        _ = dynammo.nothing


def test_merging_needs_nothing_of_the_pipeline() -> None:
    code = """
import sys, dynammo
before = "torch" in sys.modules
import torch
merged = dynammo.MERGE_RULES["average"]([{"w": torch.zeros(2)}, {"w": torch.ones(2)}])
heavy = {"prefect", "mlflow", "dvc", "pydantic", "matplotlib", "onnx", "pydicom"}
print(before, merged["w"].tolist(), sorted(heavy & set(sys.modules)))
"""
    assert alone(code) == "False [0.5, 0.5] []"


def test_a_missing_package_names_its_extra() -> None:
    told = 'here is not installed; it comes with: pip install "dynammo[more]"'
    with pytest.raises(MissingExtra) as caught, needs("more", "not_there", "not_here"):
        import not_here.part  # noqa: F401
    assert expected_line(caught.value) == f"not_{told}"
    with pytest.raises(ModuleNotFoundError, match="nowhere"), needs("more", "not_here"):
        import nowhere  # noqa: F401


def test_pictures_are_decoded_where_pydicom_was_never_installed() -> None:
    code = """
import importlib.metadata as metadata
known = metadata.version
def version(name):
    if name == "pydicom":
        raise metadata.PackageNotFoundError(name)
    return known(name)
metadata.version = version
from dynammo.data.formats import pictures
print(pictures.DECODER_VERSION.endswith("-pydicom-none"))
"""
    assert alone(code) == "True"


def test_without_pydicom(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dynammo.data.formats.pictures import decode

    for name in [name for name in sys.modules if name.partition(".")[0] == "pydicom"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "dynammo.data.formats.dicom", raising=False)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    told = r'pydicom is not installed; it comes with: pip install "dynammo\[dicom\]"'
    with pytest.raises(DataError, match=told):
        decode(128 * b"\0" + b"DICM")
    assert about("dicom").title and written_sources()  # the list of sources is shown all the same
    (tmp_path / "manifest.csv").write_text("file,split,class\n")
    with pytest.raises(MissingExtra, match=told):
        dynammo.DATA_SOURCES["dicom"](tmp_path)


def test_without_onnx() -> None:
    code = """
import sys
sys.modules["onnx"] = None
import dynammo
try:
    dynammo.export_model
except ImportError as error:
    print(error)
"""
    assert alone(code) == 'onnx is not installed; it comes with: pip install "dynammo[export]"'


def test_the_command_without_the_pipeline() -> None:
    code = "import sys; sys.modules['typer'] = None; from flows.command import app; app()"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 1
    line = 'error: typer is not installed; it comes with: pip install "dynammo[pipeline]"\n'
    assert told.stderr == line
