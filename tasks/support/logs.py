"""Expected errors are one line in the logs, not a traceback."""

from __future__ import annotations

import logging

from dynammo.errors import expected_line


def _drop_expected_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and (line := expected_line(error)) is not None:
        record.exc_info = None
        record.msg, record.args = line, ()
    return True


def shorten_expected_errors() -> None:
    """Let Prefect log an error that is no bug as one line. Anything else keeps its traceback."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if _drop_expected_traceback not in logger.filters:
            logger.addFilter(_drop_expected_traceback)
