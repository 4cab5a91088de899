"""A round on disk: what sites sent, by hash, and what was left out."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynammo.checkpoint import CheckpointStore, to_json, write_atomically
from dynammo.clinical import Counts as ColumnCounts
from dynammo.config import Config
from dynammo.errors import DataError
from dynammo.federated.judge import Counts
from dynammo.federated.site import state_hash
from dynammo.state import State

FORMAT = 3
READ = (2, FORMAT)  # in 2, sites sent no temperatures and no counts of columns


@dataclass
class SiteSent:
    """What the server has of a site: the number of its batch, the classes, how many training images
    there were, its adapter, by method its statistics, what the merged model answers to its test
    images, none if it did not judge, how many bytes all took, the epsilon of its statistics,
    0 before they came and infinite without noise, the counts of its columns, if it sent any, and by
    method its temperature (`dynammo.federated.merge.temperature_of`).
    """

    name: str
    number: int = 0
    classes: list[str] = field(default_factory=list)
    images: int = 0
    adapter: State = field(default_factory=dict)
    statistics: dict[str, State] = field(default_factory=dict)
    tests: Counts | None = None
    bytes: int = 0
    epsilon: float = 0.0
    columns: ColumnCounts | None = None
    temperatures: dict[str, float] = field(default_factory=dict)


def write_round(
    folder: Path,
    config: Config,
    min_patients: int,
    sites: Sequence[SiteSent],
    merged: State,
    backbone: str,
    left_out: Sequence[dict[str, str]],
    seconds: float,
    silent: Sequence[dict[str, str]] = (),
    rounds: int = 1,
) -> None:
    """Write `objects/`, and `round.json` last.

    Args:
        folder: of the round.
        config: of the learner.
        min_patients: k.
        sites: that went through.
        merged: of their adapters.
        backbone: hash of the frozen network (`dynammo.federated.site`).
        left_out: `name` and `reason` of all others.
        seconds: that it took.
        silent: `name` and `reason` of sites whose part is in, and that did not judge the result.
        rounds: of training; their adapters are those of the last.
    """
    store = CheckpointStore(folder / "objects")
    ordered = sorted(sites, key=lambda own: own.number)
    document = {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "min_patients": min_patients,
        "backbone": backbone,
        "merged": state_hash(merged),
        "sites": [
            {
                "name": own.name,
                "number": own.number,
                "classes": own.classes,
                "images": own.images,
                "bytes": own.bytes,
                "epsilon": own.epsilon if math.isfinite(own.epsilon) else None,
                "adapter": store.save("adapter", own.adapter, {"site": own.name}),
                "statistics": {
                    name: store.save("batch-statistics", state, {"site": own.name})
                    for name, state in own.statistics.items()
                },
                "tests": own.tests.document() if own.tests else None,
                "temperatures": own.temperatures,
                "columns": store.save_json("column-counts", own.columns) if own.columns else None,
            }
            for own in ordered
        ],
        "left_out": list(left_out),
        "silent": list(silent),
        "rounds": rounds,
        "seconds": round(seconds, 1),
    }
    write_atomically(folder / "round.json", to_json(document))


def read_round(folder: Path) -> dict[str, Any]:
    """The document of a round.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    path = folder / "round.json"
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = document["format"]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if found not in READ:
        raise DataError(
            f"{path} is of format {found!r}, this program reads {' and '.join(map(str, READ))}"
        )
    return document
