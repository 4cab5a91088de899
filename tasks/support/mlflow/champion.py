"""Which registered model carries the alias `champion`: the gate, and the alias."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import TypedDict

from dynammo.config import GateConfig
from tasks.support.mlflow.runs import mlflow_client

ALIAS = "champion"

_METRIC = "last_mean_class_recall"
_ROUNDING = 1e-9  # 0.80 - 0.75 exceeds 0.05 by rounding alone


class Check(TypedDict):
    """One condition of the gate."""

    name: str
    passed: bool
    detail: str


class Decision(TypedDict):
    """What the gate says, and why."""

    passed: bool
    checks: list[Check]


class Champion(TypedDict):
    """The model that carries the alias, and what it was measured on; none where unknown."""

    version: str
    last_mean_class_recall: float | None
    data_hash: str | None
    classes: list[str] | None


def gate(
    config: GateConfig,
    merged: Mapping[str, float | None],
    unmerged: Mapping[str, float | None] | None,
    champion: Champion | None,
    *,
    data_hash: str,
    classes: Collection[str],
) -> Decision:
    """Decide whether a model may become champion: all conditions of `GateConfig` must hold.

    A condition with nothing to compare with holds, and its detail says why.

    Args:
        config: the conditions.
        merged: summary metrics of the new model.
        unmerged: those of the unmerged variant, if it was evaluated.
        champion: the present champion, if any. Compared only where it was measured on the same data
            and the same classes, in any order.
        data_hash: of the data that the new model was measured on.
        classes: that it tells apart.
    """
    recall = merged.get(_METRIC)
    if recall is None:
        no_value: Check = {
            "name": "min_last_recall",
            "passed": False,
            "detail": "the last mean class recall has no value",
        }
        return {"passed": False, "checks": [no_value]}
    checks: list[Check] = [
        {
            "name": "min_last_recall",
            "passed": recall >= config.min_last_recall - _ROUNDING,
            "detail": f"last mean class recall {recall:.2%}, at least {config.min_last_recall:.2%}",
        },
        _against_unmerged(config, recall, unmerged),
        _against_champion(config, recall, champion, data_hash, classes),
    ]
    return {"passed": all(check["passed"] for check in checks), "checks": checks}


def current_champion(model_name: str) -> Champion | None:
    """The version that carries the alias; none if there is no such model or alias.

    Raises:
        TrackingError: see `tasks.support.mlflow.runs.mlflow_client`.
    """
    with mlflow_client() as client:
        found = client.search_registered_models(f"name = '{model_name}'")
        version = found[0].aliases.get(ALIAS) if found else None
        if version is None:
            return None
        tags = client.get_model_version(model_name, version).tags
    return {
        "version": str(version),
        "last_mean_class_recall": float(tags[_METRIC]) if _METRIC in tags else None,
        "data_hash": tags.get("data_hash"),
        "classes": json.loads(tags["classes"]) if "classes" in tags else None,
    }


def promote(model_name: str, version: str, decision: Decision) -> bool:
    """Give a version the alias `champion` if it passed the gate; note the decision on it anyhow.

    Returns:
        Whether it is champion now.

    Raises:
        TrackingError: see `tasks.support.mlflow.runs.mlflow_client`.
    """
    failed = [check["detail"] for check in decision["checks"] if not check["passed"]]
    with mlflow_client() as client:
        note = "passed" if decision["passed"] else f"not passed: {'; '.join(failed)}"
        client.set_model_version_tag(model_name, version, "gate", note)
        if decision["passed"]:
            client.set_registered_model_alias(model_name, ALIAS, version)
    return decision["passed"]


def _against_unmerged(
    config: GateConfig, recall: float, unmerged: Mapping[str, float | None] | None
) -> Check:
    other = unmerged.get(_METRIC) if unmerged is not None else None
    if other is None:
        passed, detail = True, "unmerged was not evaluated: not compared"
    else:
        gap = other - recall
        passed = gap <= config.max_gap_to_unmerged + _ROUNDING
        detail = (
            f"unmerged {other:.2%}, {100 * gap:+.2f} points from merged, at most "
            f"{100 * config.max_gap_to_unmerged:+.2f}"
        )
    return {"name": "max_gap_to_unmerged", "passed": passed, "detail": detail}


def _against_champion(
    config: GateConfig,
    recall: float,
    champion: Champion | None,
    data_hash: str,
    classes: Collection[str],
) -> Check:
    passed, other = True, champion and champion["last_mean_class_recall"]
    if not config.beat_champion:
        detail = "switched off: not compared"
    elif champion is None:
        detail = "there is no champion yet"
    elif champion["data_hash"] != data_hash:
        detail = f"champion {champion['version']} was measured on other data: not compared"
    elif champion["classes"] is None or set(champion["classes"]) != set(classes):
        detail = f"champion {champion['version']} knows other classes: not compared"
    elif other is None:
        detail = f"champion {champion['version']} has no {_METRIC}: not compared"
    else:
        passed = recall >= other - _ROUNDING
        detail = f"champion {champion['version']} has {other:.2%}, this model {recall:.2%}"
    return {"name": "beat_champion", "passed": passed, "detail": detail}
