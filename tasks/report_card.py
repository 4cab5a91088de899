"""Gather what a learner's files say of a version, for its card."""

from __future__ import annotations

import hashlib
import json

from dynammo.deploy.graph import MANIFEST
from dynammo.deploy.signature import SIGNATURE
from dynammo.learner.folder import LearnerFolder
from dynammo.learner.settings import DEPLOYED
from dynammo.reporting.card import Card, Change
from tasks.publish import thresholds
from tasks.report_change import change_of
from tasks.support.version import config_of, read_version


def card_of(folder: LearnerFolder, number: int) -> Card:
    """All that the card of a version says.

    Raises:
        LearnerError: there is no such version.
    """
    version = read_version(folder, number)
    history: list[Change] = []
    ancestor = number
    while ancestor:
        document = read_version(folder, ancestor)
        history.append(
            {
                "number": ancestor,
                "at": document["at"],
                "operation": document["operation"],
                "passed": document["gate"]["passed"],
            }
        )
        ancestor = document["parent"]
    model = folder.path / "model"
    marker = model / "version.json"
    published = marker.is_file() and json.loads(marker.read_bytes()) == {"version": number}
    config = config_of(version)
    limits = thresholds(version["stage"]["methods"][DEPLOYED], config.tracking, folder.store)
    unknown = limits["unknown"]
    told_by = (
        f"its answer{' or how the image looks' if unknown.appearance else ''}" if unknown else None
    )
    return {
        "change": change_of(folder, number, version),
        "history": history[::-1],
        "learnt": [{**own} for own in version["batches"]],
        "forgotten": version["forgotten"],
        "backbone": version["backbone"]["sha256"],
        "settings": version["config"],
        "model": hashlib.sha256((model / MANIFEST).read_bytes()).hexdigest() if published else None,
        "signed": published and (model / SIGNATURE).is_file(),
        "sets": limits["prediction_sets"] is not None,
        "unknown": told_by,
    }
