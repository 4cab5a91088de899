"""Model folders: damaged anywhere, lacking something, of other types; and what they are asked."""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from dynammo.deploy.graph import GraphPredictor
from dynammo.deploy.predictor import Predictor
from tasks.support.mlflow.pyfunc_model import ImageClassifier
from tests.hostile.corpus.judging import Case
from tests.hostile.corpus.pictures import encoded, odd
from tests.models import graph_folder, random_model, reseal

UNUSABLE = "holds no usable model: "
REGIONS = 20
KEYS = ("format", "classes", "image_size", "backbone", "adapter", "provenance", "weights_sha256")
VALUES: dict[str, Any] = {"a list": [], "a number": 3.5, "a text": "x", "a map": {"x": 1}}


@cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    """A model and a graph, made once."""
    kept = tempfile.TemporaryDirectory()
    provenance = {"data": "d" * 64}
    random_model(Path(kept.name) / "model", ["a", "b", "c"], provenance=provenance)
    graph_folder(Path(kept.name) / "graph")
    return kept


def copied(name: str, place: Path) -> Path:
    """A copy of the `model` or the `graph` to be harmed."""
    return shutil.copytree(Path(_kept().name) / name, place / name)


def cases() -> Iterator[Case]:
    """All about models."""
    for name, file in (
        *(("model", file) for file in ("model.safetensors", "model.json")),
        *(("graph", file) for file in ("model.onnx", "graph.json", "model.json")),
    ):
        for region in range(REGIONS if name == "model" else REGIONS // 2):
            share = region / (REGIONS if name == "model" else REGIONS // 2)
            yield Case(
                "models",
                f"{file} of a {name}, a bit flipped at {share:.0%}",
                partial(_flipped, name, file, share),
                UNUSABLE,
            )
        for what, content in {
            "empty": b"",
            "rubbish": b"\xff" * 100,
            "gone": None,
            "a folder": "folder",
            "deep": b"[" * 200_000,
        }.items():
            if (file, what) != ("graph.json", "gone"):  # no graph, then
                yield Case(
                    "models",
                    f"{file} of a {name}, {what}",
                    partial(_replaced, name, file, content),
                    UNUSABLE,
                )
    for key in KEYS:
        yield Case(
            "models",
            f"no {key}",
            partial(_resealed, key, None),
            None if key == "adapter" else UNUSABLE,
        )
        for what, value in VALUES.items():
            if (key, what) != ("provenance", "a map"):
                yield Case("models", f"{key} is {what}", partial(_resealed, key, value), UNUSABLE)
    for what, value in {
        "a text": "64",
        "nothing": 0,
        "negative": -64,
        "huge": 10**9,
        "true": True,
        "no number": None,
    }.items():
        yield Case(
            "models", f"image_size {what}", partial(_resealed, "image_size", value), UNUSABLE
        )
    tensors = ("head/weight", "head/bias", "backbone/layer1.0.conv1.weight")
    for tensor in tensors:
        for what, harm in _HARM.items():
            yield Case("models", f"{tensor} {what}", partial(_tensor, tensor, harm), UNUSABLE)
    for name, table in _payloads().items():
        yield Case("served model", name, partial(_asked, table), "cannot read |expected|image")


def _flipped(name: str, file: str, share: float, place: Path) -> None:
    folder = copied(name, place)
    content = bytearray((folder / file).read_bytes())
    content[int(share * len(content))] ^= 1
    (folder / file).write_bytes(content)
    _load(name, folder)


def _replaced(name: str, file: str, content: Any, place: Path) -> None:
    folder = copied(name, place)
    (folder / file).unlink()
    if content == "folder":
        (folder / file).mkdir()
    elif content is not None:
        (folder / file).write_bytes(content)
    _load(name, folder)


def _load(name: str, folder: Path) -> None:
    if name == "model":
        Predictor(folder)
    else:
        GraphPredictor(folder)


def _resealed(key: str, value: Any, place: Path) -> None:
    """As someone who makes the hashes anew."""
    folder = copied("model", place)
    if key == "weights_sha256":
        from dynammo.checkpoint import sealed

        manifest = json.loads((folder / "model.json").read_text())
        del manifest["document_sha256"], manifest[key]
        more = {} if value is None else {key: value}
        (folder / "model.json").write_bytes(sealed(manifest | more))
    elif value is None and key == "adapter":
        reseal(folder, {key: None}, _folded(folder))
    else:
        reseal(folder, {key: value})
    Predictor(folder)


def _folded(folder: Path) -> dict[str, torch.Tensor]:
    """Without the adapters: a bare backbone, which is a model as well."""
    tensors = load_file(folder / "model.safetensors")
    return {key: value for key, value in tensors.items() if not key.startswith("adapter")}


_HARM: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "not a number": lambda t: t * torch.nan,
    "infinite": lambda t: torch.full_like(t, torch.inf),
    "float16": lambda t: t.half(),
    "float64": lambda t: t.double(),
    "integers": lambda t: t.int(),
    "complex": lambda t: t.to(torch.complex64),
    "cut": lambda t: t[:1].clone(),
    "turned": lambda t: t[None].clone(),
    "empty": lambda t: t[:0].clone(),
    "gone": lambda _: None,
}


def _tensor(name: str, harm: Callable[[torch.Tensor], torch.Tensor | None], place: Path) -> None:
    folder = copied("model", place)
    tensors = load_file(folder / "model.safetensors")
    harmed = harm(tensors.pop(name))
    reseal(folder, {}, tensors | ({} if harmed is None else {name: harmed}))
    Predictor(folder)


@cache
def _classifier() -> ImageClassifier:
    served = ImageClassifier()
    served.load_context(SimpleNamespace(artifacts={"model": str(Path(_kept().name) / "graph")}))
    return served


def _asked(image: Any, _: Path) -> None:
    _classifier().predict(None, pd.DataFrame({"image": pd.Series([image], dtype=object)}))


def _payloads() -> dict[str, Any]:
    good = encoded("PNG")
    files = {name: base64.b64encode(content).decode() for name, content in odd().items()}
    return {
        **files,
        "a file cut off": base64.b64encode(good[: len(good) // 2]).decode(),
        "base64 cut off": base64.b64encode(good).decode()[:-3],
        "no base64": "%%%",
        "an empty text": "",
        "blanks": "   ",
        "a path": "/etc/passwd",
        "an address": "http://127.0.0.1/x.png",
        "a data address of nothing": "data:image/png;base64,",
        "a data address without an end": "data:image/png",
        "text in Cyrillic": "\u0444\u043e\u0442\u043e",
        "a lone surrogate": "\ud800",
        "nothing": None,
        "not a number": float("nan"),
        "a number": 3,
        "true": True,
        "a map": {"a": 1},
        "a list of nothing": [],
        "a list of numbers": [1, 2, 3],
        "a row of pixels": [[1, 2, 3]],
        "rows of different lengths": [[1, 2], [3]],
        "lists 60 deep": json.loads("[" * 60 + "]" * 60),
        "negative pixels": [[-1] * 5] * 5,
        "pixels of a million": [[10**6] * 5] * 5,
        "pixels beyond 64 bits": [[10**30] * 5] * 5,
        "pixels of text": [["a"] * 5] * 5,
        "pixels of nothing": [[None] * 5] * 5,
        "pixels above 1": [[1.5] * 5] * 5,
        "infinite pixels": [[float("inf")] * 5] * 5,
        "an empty array": np.zeros((0, 5, 3), np.uint8),
        "bytes of nothing": b"",
    }
