"""The registered model as MLflow runs it: images in, class names with probabilities out.

MLflow copies this file into the model and executes it from there ("models from code", so nothing is
pickled), with the `dynammo` package beside it and nothing else of this project: import no more.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc.model import PythonModel
from PIL import Image

from dynammo.clinical import Evidence
from dynammo.data.formats.pictures import Pixels, Source, as_given, decode, opened
from dynammo.deploy.graph import has_graph, load_predictor
from dynammo.deploy.log import LOG, PredictionLog, hash_pixels
from dynammo.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dynammo.deploy.predictor import Predictor


class ImageClassifier(PythonModel):
    """A classifier of images given as arrays or as encoded files."""

    def load_context(self, context: Any) -> None:
        """Load the model folder that MLflow kept as the artifact `model`.

        ONNX Runtime answers, torch where the model has no graph or the environment variable
        DYNAMMO_ENGINE says torch: then on a GPU if there is one. Where DYNAMMO_PUBLIC_KEY names a
        key, it must have signed the model; where DYNAMMO_PREDICTION_LOG names a file, answers are
        appended to it (`dynammo.deploy.log`) before they are given.
        """
        folder, engine = context.artifacts["model"], os.environ.get("DYNAMMO_ENGINE") or None
        device = "cpu"
        if engine == "torch" or not has_graph(folder):
            import torch

            device = "cuda" if torch.cuda.is_available() else "cpu"
        key = os.environ.get("DYNAMMO_PUBLIC_KEY") or None
        self.predictor = load_predictor(folder, engine, device, public_key=key)
        self.folder, self.key = folder, key
        self.explainer: Predictor | None = None  # loads torch, once somebody asks for a heat map
        file = os.environ.get(LOG)
        self.log = PredictionLog(file, self.predictor.model_sha256) if file else None

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Classify the images in the column `image`.

        Args:
            context: unused.
            model_input: a row an image. An image is an array, as
                `dynammo.data.formats.pictures.decode` takes it, or nested lists of the same; or an
                encoded file (PNG, JPEG, ...), as base64 text or as bytes. Text is never taken for
                a path. Columns that the model goes by beside the image, such as age
                (`dynammo.clinical`), may be left out.
            params: `heat_map`, whether one is wanted of each image, for which torch is loaded.

        Returns:
            For each image `label`, `probability`, `probabilities` (by class name),
            `prediction_set` and `unknown` (None where the model has no thresholds for it). Where it
            is wanted, also `heat_map`: a PNG as base64, of the network's size, red where the image
            speaks for `label` and blue where against it (`dynammo.deploy.heat_map`).

        Raises:
            MlflowException: images cannot be read (HTTP 400); every one is named with the reason.
                Or a column's number is none, or the network gives no heat maps.
        """
        images, hashes, problems = [], [], []
        sent = list(_images(model_input))
        for number, image in enumerate(sent, start=1):
            name = f"image {number} of {len(sent)}"
            try:
                source = _source(image, name)
                form = self.predictor.form
                images.append(as_given(opened(source, form, name), form))
                hashes.append(
                    hashlib.sha256(source).hexdigest()
                    if isinstance(source, bytes)
                    else hash_pixels(images[-1])
                )
            except DataError as error:
                problems.append(str(error))
        if problems:
            raise MlflowException("; ".join(problems), error_code=BAD_REQUEST)
        try:
            columns = _columns(model_input, self.predictor.clinical, len(sent))
            answers = self.predictor.predict(images, columns=columns)
        except DataError as error:
            raise MlflowException(str(error), error_code=BAD_REQUEST) from None
        if self.log:
            self.log.append(list(zip(hashes, answers, strict=True)))
        rows = [answer._asdict() for answer in answers]
        if (params or {}).get("heat_map"):
            for row, image in zip(rows, images, strict=True):
                row["heat_map"] = self._heat_map(image, row["label"])
        return rows

    def _heat_map(self, image: Pixels, label: str) -> str:
        from dynammo.deploy.heat_map import explained
        from dynammo.deploy.predictor import Predictor

        if self.explainer is None:
            loaded = load_predictor(self.folder, "torch", public_key=self.key)
            assert isinstance(loaded, Predictor)
            self.explainer = loaded
        try:
            content = explained(self.explainer, image, label)
        except ConfigError as error:
            raise MlflowException(error.problems[0], error_code=BAD_REQUEST) from None
        return base64.b64encode(content).decode()


def read_image(image: Any, name: str) -> Pixels:
    """An image as users send it -> (H, W, 3) uint8.

    Integers of a type with signs, as in JSON, are taken as 8-bit if none exceeds 255, else as
    16-bit; fractions must lie in [0, 1].

    Args:
        image: see `ImageClassifier.predict`.
        name: what to call it in an error.

    Raises:
        DataError: it cannot be read.
    """
    return decode(_source(image, name), name)


def _source(image: Any, name: str) -> Source:
    if isinstance(image, str):
        return _from_base64(image, name)
    if isinstance(image, list | tuple | np.ndarray):
        return _as_array(image, name)
    if isinstance(image, bytes | Image.Image):
        return image
    kind = "nothing" if image is None else type(image).__name__
    raise DataError(f"cannot read {name}: expected an array or base64 text, got {kind}")


def _images(table: pd.DataFrame) -> Iterator[Any]:
    """The cells; MLflow's format `inputs` packs several base64 texts into one, as a list."""
    for cell in table["image"]:
        if isinstance(cell, list) and cell and all(isinstance(item, str) for item in cell):
            yield from cell
        else:
            yield cell


def _columns(table: pd.DataFrame, known: Evidence | None, images: int) -> dict[str, list[str]]:
    """What is known beside each image, as texts; empty where a cell is.

    Raises:
        DataError: a row has several images.
    """
    names = [name for name in (known.names if known else []) if name in table]
    if names and len(table) != images:
        raise DataError(f"{', '.join(names)}: expected one image a row")
    return {name: [_text(cell) for cell in table[name]] for name in names}


def _text(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    return f"{cell:g}" if isinstance(cell, float) else str(cell).strip()


def _from_base64(text: str, name: str) -> bytes:
    text = re.sub(r"^data:[^,]*,", "", text.lstrip(), count=1)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise DataError(f"cannot read {name}: the text is not base64 of an image file") from None


def _as_array(rows: Sequence[Any] | np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(rows)
    except ValueError:
        raise DataError(f"cannot read {name}: rows of different lengths") from None
    if array.ndim == 2 and array.shape[1] in (3, 4):
        # A lone image where a list of images belongs comes as its rows, one by one.
        raise DataError(f"cannot read {name}: {array.shape} is a row of pixels, no image")
    if array.dtype.kind == "i" and array.size:
        low, high = array.min(), array.max()
        if low < 0 or high > 65535:
            raise DataError(
                f"cannot read {name}: values {low} to {high}; expected 0 to 255, or to 65535"
            )
        array = array.astype(np.uint8 if high <= 255 else np.uint16)
    return array


set_model(ImageClassifier())
