"""Progress for people: a bar where there is a terminal, log lines for the record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A function `progress(done, total)` that moves a bar; without a terminal it shows nothing."""
    with tqdm(desc=what, unit=unit, leave=False, disable=None, dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def epoch_lines(epochs: int) -> Callable[[int, tuple[float, float]], None]:
    """A function `report(number, (loss, accuracy))` that logs each of so many epochs in a line."""
    from prefect import get_run_logger  # here: a bar needs no Prefect

    logger = get_run_logger()

    def report(number: int, means: tuple[float, float]) -> None:
        loss, accuracy = means
        logger.info("epoch %d/%d: loss %.4f, %.1f%% right", number, epochs, loss, 100 * accuracy)

    return report
