"""Expected errors are one line in the logs, not a traceback."""

from __future__ import annotations

import logging

from dynammo.errors import DynammoError


def _drop_expected_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, DynammoError):
        record.exc_info = None
        record.msg, record.args = str(error), ()
    return True


def shorten_expected_errors() -> None:
    """Let Prefect log a `DynammoError` by its message alone. Anything else keeps its traceback."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if _drop_expected_traceback not in logger.filters:
            logger.addFilter(_drop_expected_traceback)
