"""The flow that looks at new images with the model in use: are they still as it was measured on?

Run it with `dynammo monitor NAME IMAGES`, or as the deployment `dynammo/monitor` on a schedule. An
alarm is told (`flows.support.notify`); it is also an event of Prefect's, for automations, and what
was found is recorded in MLflow under the version.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.events import emit_event

from dynammo.errors import DataError
from flows.support.notify import notify, tell
from tasks.monitor_learner import monitor_version, record_monitoring
from tasks.support.logs import shorten_expected_errors
from tasks.support.mlflow.runs import TrackingError
from tasks.support.version import find_learner

shorten_expected_errors()


@flow(name="dynammo", flow_run_name="{learner}: monitor", on_failure=[notify])
def monitor(
    learner: str,
    images: str,
    version: int | None = None,
    false_alarms: float = 0.01,
    reference: str | None = None,
    evidently: str | None = None,
) -> dict[str, Any]:
    """Check a batch of new images.

    Args:
        learner: its name.
        images: a folder, or a CSV with `file` and, if wanted, `class` and `group`.
        version: of the learner; default: the champion.
        false_alarms: the share of batches without any change that may raise an alarm.
        reference: what this gave of a time when all was well, as a JSON file: its answers are what
            the shares of the classes are compared with.
        evidently: HTML file for Evidently's report (`tasks.report_evidently`).

    Returns:
        See `tasks.monitor_learner.monitor_version`.

    Raises:
        DataError: images or reference cannot be used.
        DynammoError: Evidently's report is wanted and cannot be made.
    """
    folder = find_learner(learner)
    number = version or folder.pointer()["champion"]
    if not number:
        raise DataError(f"{learner} has no champion: name a version")
    window = _answers(Path(reference), folder.identity, number) if reference else None
    path = str(folder.path)
    found = monitor_version(path, number, images, false_alarms, window, evidently)
    told, logger = ", ".join(found["alarms"]), get_run_logger()
    if told:
        logger.warning("%s, version %d: alarm: %s", learner, number, told)
        tell(f"{learner}: version {number} no longer sees what it was measured on", told)
    emit_event(
        f"dynammo.monitor.{'alarm' if told else 'quiet'}",
        resource={
            "prefect.resource.id": f"dynammo.learner.{folder.identity[:16]}",
            "prefect.resource.name": learner,
        },
        payload={"learner": learner, "version": number, "images": found["images"], "alarms": told},
    )
    try:
        record_monitoring(path, found)
    except TrackingError as error:  # what was found is not lost for that
        logger.warning("not recorded in MLflow: %s", error)
    return found


def _answers(file: Path, identity: str, number: int) -> dict[str, int]:
    """The answers that an earlier report counted.

    Raises:
        DataError: it is no report on this version.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        answers: dict[str, int] = document["answers"]
        if (document["learner"], document["version"]) != (identity, number) or not any(
            answers.values()
        ):
            raise DataError(f"{file} is no report on version {number} of this learner")
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{file} is no report of dynammo monitor") from None
    return answers
