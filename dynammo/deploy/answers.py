"""Images in, answers out, whatever computes them: a few at a time, or a stream without end.

Nothing here loads torch: `dynammo predict` answers before torch would be imported.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynammo.clinical import Columns, Evidence
from dynammo.data.formats.pictures import Form, Pixels, load_image
from dynammo.errors import DataError
from dynammo.evaluation.strangeness import UnknownLimits

_BATCHES = (1, 2, 4, 8, 16, 32)
_ROUNDS = 3  # batches that a size is judged by
_WORTH = 1.05  # times as many images a second, or a larger batch only costs memory


class Answer(NamedTuple):
    """What the model says of one image.

    `prediction_set` has the classes that cannot be excluded (`PredictionSets`), none at all where
    no known class fits. It is None if the model was made without test images. `unknown` is whether
    the image seems to be of none of the classes (`Unknown`), None likewise.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    prediction_set: list[str] | None
    unknown: bool | None = None


class Answering(ABC):
    """What a loaded model can do, with any engine.

    Attributes:
        classes: names in the order of the outputs.
        form: what images are brought to: pictures S x S, the strips of volumes H x S.
        thresholds: of prediction sets, one a class; None: there are none.
        unknown: from where on an image is of no known class; None: there is no such limit.
        clinical: what columns beside the image say; None: the image answers alone.
        parents: what classes belong to; None: nothing is known of it.
        model_sha256: of `model.json`, which says what the model is made of.
        fast_jpeg: whether big JPEGs are decoded at less than their size (`load_image`).
    """

    classes: list[str]
    form: Form
    thresholds: list[float | None] | None
    unknown: UnknownLimits | None
    clinical: Evidence | None = None
    parents: dict[str, str] | None = None
    model_sha256: str
    fast_jpeg: bool = False

    @property
    def gives(self) -> list[str]:
        """Which of `prediction_set` and `unknown` its answers have."""
        sets, limit = self.thresholds is not None, self.unknown is not None
        return ["prediction_set"] * sets + ["unknown"] * limit

    @abstractmethod
    def scores(self, batch: Pixels) -> NDArray[np.float64]:
        """(B, H, S, 3) uint8 RGB -> class probabilities (B, C)."""

    def predict(
        self,
        images: Sequence[Any],
        batch_size: int = 32,
        progress: Callable[[int, int], None] | None = None,
        columns: Columns | None = None,
    ) -> list[Answer]:
        """Classify images.

        Args:
            images: paths, encoded files as bytes, or arrays, in any mix; see
                `dynammo.data.formats.pictures.decode`.
            batch_size: images at a time.
            progress: called with (images done, images).
            columns: what is known beside the images: of each column a text an image, empty where
                it is missing. Those that the model does not go by are not looked at.

        Raises:
            DataError: an image cannot be read, or a column's number is none.
        """
        answers: list[Answer] = []
        for start in range(0, len(images), batch_size):
            chosen = images[start : start + batch_size]
            batch = [load_image(image, self.form, self.fast_jpeg) for image in chosen]
            own = {
                name: values[start : start + len(batch)] for name, values in (columns or {}).items()
            }
            answers.extend(self._answers(batch, own))
            if progress is not None:
                progress(len(answers), len(images))
        return answers

    def stream(
        self, images: Iterable[Any], rows: Iterable[Mapping[str, str]] = ()
    ) -> Iterator[Answer | DataError]:
        """Classify images one after another, in their order, however many there are.

        Threads decode what comes next while a batch is classified; at most two of the largest
        batches are held, at the network's size, and as many whole pictures as there are threads.
        The size of the batches is found by measuring (`BatchSize`), on the images themselves.

        Args:
            images: as `predict` takes them.
            rows: what is known beside each of them, by column; all or none. Numbers are numbers.

        Yields:
            For each image its answer, or the error that says why it cannot be read: the images
            after it are answered all the same.
        """
        size, beside = BatchSize(), iter(rows)
        for batch in _batches(self.decoded(images), size):
            begun = time.perf_counter()
            known = [*islice(beside, len(batch))] or [{}] * len(batch)
            readable = [
                (one, row)
                for one, row in zip(batch, known, strict=True)
                if not isinstance(one, DataError)
            ]
            names = self.clinical.names if self.clinical else []
            own = {name: [row.get(name, "") for _, row in readable] for name in names}
            answers = self._answers([one for one, _ in readable], own)
            size.took(len(batch), time.perf_counter() - begun)
            yield from (one if isinstance(one, DataError) else next(answers) for one in batch)

    def decoded(self, images: Iterable[Any]) -> Iterator[Pixels | DataError]:
        """(H, S, 3) uint8 of each image, or why it cannot be read, in order; threads do it."""
        ahead: deque[Future[Pixels | DataError]] = deque()
        threads = ThreadPoolExecutor(decoding_threads())
        try:
            for image in images:
                ahead.append(threads.submit(self._decode, image))
                if len(ahead) > 2 * _BATCHES[-1]:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:  # also where nobody wants the rest
            threads.shutdown(wait=True, cancel_futures=True)

    def _decode(self, image: Any) -> Pixels | DataError:
        try:
            return load_image(image, self.form, self.fast_jpeg)
        except DataError as error:
            return error

    def _answers(self, batch: Sequence[Pixels], columns: Columns) -> Iterator[Answer]:
        if not batch:
            return iter(())
        pixels = np.stack(batch)
        scores = self.scores(pixels)
        if self.clinical is not None and any(map(any, columns.values())):
            scores = self.clinical.fused(scores, columns).astype(np.float64)
        rows = scores.tolist()
        best = (max(range(len(row)), key=row.__getitem__) for row in rows)
        strange: list[bool | None] = [None] * len(rows)
        if self.unknown is not None:
            strange = self.unknown.exceeded(scores, pixels).tolist()
        return iter(
            [
                Answer(
                    self.classes[i],
                    row[i],
                    dict(zip(self.classes, row, strict=True)),
                    self._prediction_set(row),
                    none,
                )
                for i, row, none in zip(best, rows, strange, strict=True)
            ]
        )

    def _prediction_set(self, row: Sequence[float]) -> list[str] | None:
        if self.thresholds is None:
            return None
        of_class = zip(self.classes, row, self.thresholds, strict=True)
        return [name for name, share, limit in of_class if limit is None or 1 - share <= limit]


class BatchSize:
    """The number of images at a time, found by measuring: doubled as long as that is faster.

    The first batch is one image, so that the first answer comes at once.

    Attributes:
        value: what to take next.
    """

    def __init__(self) -> None:
        self.value = _BATCHES[0]
        self._best = 0.0  # images a second, at the size before
        self._settled = False
        self._seconds: list[float] = []

    def took(self, images: int, seconds: float) -> None:
        """Say how long a batch took. One of another number than asked for is not counted."""
        if self._settled or images != self.value:
            return
        self._seconds.append(seconds)
        if len(self._seconds) < _ROUNDS:
            return
        # The least of a few: what else the machine does only adds, and so does a first time.
        rate = self.value / max(min(self._seconds), 1e-9)
        self._seconds = []
        position = _BATCHES.index(self.value)
        if rate < _WORTH * self._best:
            self.value, self._settled = _BATCHES[position - 1], True
        elif position + 1 == len(_BATCHES):
            self._settled = True
        else:
            self.value, self._best = _BATCHES[position + 1], rate


def decoding_threads() -> int:
    """As many as there are processors for this process, at most 8: Pillow lets go of the GIL."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)


def _batches(
    images: Iterator[Pixels | DataError], size: BatchSize
) -> Iterator[list[Pixels | DataError]]:
    batch: list[Pixels | DataError] = []
    for image in images:
        batch.append(image)
        if len(batch) >= size.value:
            yield batch
            batch = []
    if batch:
        yield batch
