"""What answers on the page."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynammo.data.formats.pictures import load_image, sheet
from dynammo.deploy.answers import Answering
from dynammo.deploy.graph import load_predictor
from dynammo.deploy.log import PredictionLog
from dynammo.deploy.predictor import Predictor
from dynammo.deploy.similar import Remembered, most_alike, remember
from dynammo.errors import ConfigError, DataError
from dynammo.learner.folder import LearnerError, LearnerFolder
from dynammo.reporting.figures import data_uri, thumbnail, to_png
from dynammo.reporting.heat_map import explain
from tasks.kept_pictures import kept_pictures


class Champion:
    """The champion, loaded when it is first asked and again when another took its place."""

    def __init__(self, folder: LearnerFolder, public_key: Path | None, log: Path | None) -> None:
        self._folder, self._model = folder, folder.path / "model"
        self._key, self._log = public_key, log
        self._lock = threading.Lock()
        self._loaded: dict[str | None, tuple[bytes, Answering]] = {}
        self._memory: tuple[str, Remembered] | None = None

    def classes(self) -> list[str]:
        """What it knows; none without a champion."""
        if not self._model.is_dir():
            return []
        with self._lock:
            return self._predictor(None).classes

    def columns(self) -> dict[str, list[str]]:
        """What it goes by beside a picture: of each column the values known, none of a number."""
        if not self._model.is_dir():
            return {}
        with self._lock:
            known = self._predictor(None).clinical
        if known is None:
            return {}
        return {name: sorted(known.categories.get(name, ())) for name in known.names}

    def answer(self, content: bytes, beside: Mapping[str, str]) -> dict[str, Any]:
        """What it says of a picture, and of what is known beside it, as `Answer` has it."""
        with self._lock:
            predictor = self._predictor(None)
            (answer,) = predictor.stream([content], [beside])
            if isinstance(answer, DataError):
                raise answer
            if self._log is not None:
                digest = hashlib.sha256(content).hexdigest()
                PredictionLog(self._log, predictor.model_sha256).append([(digest, answer)])
        return answer._asdict()

    def heat_map(self, content: bytes, label: str | None) -> bytes:
        """A PNG of where a class is seen; none: the most probable one."""
        with self._lock:
            predictor = self._predictor("torch")
            assert isinstance(predictor, Predictor)
            picture = load_image(content, predictor.form)
            figure, _ = explain(predictor, picture, label)
            return to_png(figure)

    def similar(self, content: bytes) -> list[dict[str, Any]]:
        """The pictures in the learner's memory that it sees most like one, the nearest first:
        `label`, `likeness` and `picture`, a data URI; none where no picture is kept.

        The memory is read anew each time, for a picture that was purged is shown no more; what the
        champion sees in it is computed once.
        """
        if not self._model.is_dir():
            return []
        with self._lock:
            try:
                pictures, labels = kept_pictures(self._folder, self._model)
            except ConfigError:
                self._memory = None
                return []
            predictor = self._predictor("torch")
            assert isinstance(predictor, Predictor)
            picture = load_image(content, predictor.form)
            digest = hashlib.sha256(pictures.tobytes()).hexdigest()
            made_of = f"{predictor.model_sha256} {labels} {digest}"
            if self._memory is None or self._memory[0] != made_of:
                self._memory = (made_of, remember(predictor, pictures, labels))
            return [
                {
                    "label": own.label,
                    "likeness": own.likeness,
                    "picture": data_uri(thumbnail(sheet(own.picture))),
                }
                for own in most_alike(predictor, picture, self._memory[1])
            ]

    def _predictor(self, engine: str | None) -> Answering:
        """The lock must be held."""
        if not self._model.is_dir():
            raise LearnerError("there is no champion yet, so nothing can be answered")
        made_of = (self._model / "model.json").read_bytes()
        if engine not in self._loaded or self._loaded[engine][0] != made_of:
            predictor = load_predictor(self._model, engine, public_key=self._key)
            self._loaded[engine] = (made_of, predictor)
        return self._loaded[engine][1]
