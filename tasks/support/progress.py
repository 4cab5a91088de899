"""Progress for people: a bar where there is a terminal, log lines for the record."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 10.0


@contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A function `progress(done, total)` that moves a bar.

    Without a terminal, a flow or task run has a line in its log instead, every ten seconds.
    """
    with tqdm(desc=what, unit=unit, leave=False, disable=None, dynamic_ncols=True) as bar:
        logger = _run_logger() if bar.disable else None
        started = said = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal said
            bar.total = total
            bar.update(done - bar.n)
            now = time.monotonic()
            if logger and 0 < done < total and now - said >= LINE_SECONDS:
                said = now
                left = tqdm.format_interval((now - started) * (total - done) / done)
                logger.info("%s: %s %d of %d, about %s left", what, unit, done, total, left)

        yield progress


def _run_logger() -> Any:
    """Of the flow or task that runs; none outside."""
    if "prefect" not in sys.modules:  # `dynammo predict` answers without it
        return None
    from prefect import get_run_logger
    from prefect.exceptions import MissingContextError

    try:
        return get_run_logger()
    except MissingContextError:
        return None


def epoch_lines(epochs: int) -> Callable[[int, tuple[float, float]], None]:
    """A function `report(number, (loss, accuracy))` that logs each of so many epochs in a line."""
    from prefect import get_run_logger  # here: a bar needs no Prefect

    logger = get_run_logger()

    def report(number: int, means: tuple[float, float]) -> None:
        loss, accuracy = means
        logger.info("epoch %d/%d: loss %.4f, %.1f%% right", number, epochs, loss, 100 * accuracy)

    return report
