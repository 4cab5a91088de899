"""Which registered model carries the alias `champion`: the gate, and the alias."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import TypedDict

from mlflow import MlflowClient

from dynammo.config import GateConfig
from dynammo.evaluation.gate import (
    Check,
    Decision,
    decide,
    not_below,
    recall_check,
    unmerged_check,
)
from tasks.support.mlflow.runs import mlflow_client
from tasks.support.mlflow.served_model import LEARNER

ALIAS = "champion"

_BEFORE = "champion_before"  # tag of a version that was promoted: whose place it took
_METRIC = "last_mean_class_recall"


class Champion(TypedDict):
    """The model that carries the alias, and what it was measured on; none where unknown. `learner`
    is the name of the one that it is a version of, if it is.
    """

    version: str
    last_mean_class_recall: float | None
    data_hash: str | None
    classes: list[str] | None
    learner: str | None


def gate(
    config: GateConfig,
    merged: Mapping[str, float | None],
    unmerged: Mapping[str, float | None] | None,
    champion: Champion | None,
    *,
    data_hash: str,
    classes: Collection[str],
) -> Decision:
    """Decide whether the model of an experiment may become champion, from summary metrics.

    All conditions of `GateConfig` that are about experiments must hold. Without an unmerged variant
    or a champion there is nothing to compare with, and their conditions hold; a champion that the
    model cannot be compared with stops it, and so does a version of a learner, whose next ones take
    its place (`dynammo.evaluation.gate.judge`).

    Args:
        config: the conditions.
        merged: summary metrics of the new model.
        unmerged: those of the unmerged variant, if it was evaluated.
        champion: the present champion, if any. It can be compared where it was measured on the same
            data and the same classes, in any order.
        data_hash: of the data that the new model was measured on.
        classes: that it tells apart.
    """
    recall = merged.get(_METRIC)
    return decide(
        [
            recall_check(config, recall),
            unmerged_check(config, recall, unmerged.get(_METRIC) if unmerged is not None else None),
            _against_champion(config, recall, champion, data_hash, classes),
        ]
    )


def current_champion(model_name: str, run_id: str | None = None) -> Champion | None:
    """The version that carries the alias; none if there is no such model or alias.

    Args:
        model_name: of the registered model.
        run_id: of the run that asks. Where its own version is champion already, this is the one
            whose place that took: a repeated run is judged as it was at first, not against itself.

    Raises:
        TrackingError: see `tasks.support.mlflow.runs.mlflow_client`.
    """
    with mlflow_client() as client:
        return _champion(client, model_name, run_id)


def promote(
    model_name: str, version: str, decision: Decision, *, reason: str | None = None
) -> bool:
    """Give a version the alias `champion` if it passed the gate; note the decision on it anyhow.

    Whose place it takes is noted before it does, for `current_champion`.

    Args:
        model_name: of the registered model.
        version: of it.
        decision: of the gate.
        reason: promote the version against the gate, too. It is noted beside what did not pass, as
            the tag `gate_overruled`; not used where the gate was passed.

    Returns:
        Whether it is champion now.

    Raises:
        ValueError: the reason is blank.
        TrackingError: see `tasks.support.mlflow.runs.mlflow_client`.
    """
    if reason is not None and not reason.strip():
        raise ValueError("promotion against the gate needs a reason, got a blank one")
    failed = [check["detail"] for check in decision["checks"] if not check["passed"]]
    promoted = decision["passed"] or reason is not None
    with mlflow_client() as client:
        note = "passed" if decision["passed"] else f"not passed: {'; '.join(failed)}"
        client.set_model_version_tag(model_name, version, "gate", note)
        if reason is not None and not decision["passed"]:
            client.set_model_version_tag(model_name, version, "gate_overruled", reason.strip())
        if promoted:
            own = client.get_model_version(model_name, version)
            before = _champion(client, model_name, own.run_id)
            if before is None or before["version"] != version:
                note = json.dumps(before, ensure_ascii=False)
                client.set_model_version_tag(model_name, version, _BEFORE, note)
            client.set_registered_model_alias(model_name, ALIAS, version)
    return promoted


def _champion(client: MlflowClient, model_name: str, run_id: str | None) -> Champion | None:
    """See `current_champion`."""
    found = client.search_registered_models(f"name = '{model_name}'")
    number = found[0].aliases.get(ALIAS) if found else None
    if number is None:
        return None
    version = client.get_model_version(model_name, number)
    tags = version.tags
    if run_id is not None and version.run_id == run_id and _BEFORE in tags:
        before: Champion | None = json.loads(tags[_BEFORE])
        return {**before, "learner": before.get("learner")} if before else None
    return {
        "version": str(number),
        "last_mean_class_recall": float(tags[_METRIC]) if _METRIC in tags else None,
        "data_hash": tags.get("data_hash"),
        "classes": json.loads(tags["classes"]) if "classes" in tags else None,
        "learner": tags.get(LEARNER),
    }


def _against_champion(
    config: GateConfig,
    recall: float | None,
    champion: Champion | None,
    data_hash: str,
    classes: Collection[str],
) -> Check:
    passed, other = True, champion and champion["last_mean_class_recall"]
    if champion is not None and champion["learner"] is not None:
        passed = False
        whose = f"registered version {champion['version']}, of the learner {champion['learner']}"
        detail = f"the champion is {whose}: no experiment takes its place"
    elif not config.beat_champion:
        detail = "switched off: not compared"
    elif champion is None:
        detail = "there is no champion yet"
    elif why := _not_comparable(champion, data_hash, classes):
        passed, detail = False, f"cannot be compared with champion {champion['version']}: {why}"
    elif recall is None or other is None:
        side = "this model" if recall is None else "it"
        passed = False
        detail = f"cannot be compared with champion {champion['version']}: {side} has no {_METRIC}"
    else:
        passed = not_below(recall, other)
        detail = f"champion {champion['version']} has {other:.2%}, this model {recall:.2%}"
    return {"name": "beat_champion", "passed": passed, "detail": detail}


def _not_comparable(champion: Champion, data_hash: str, classes: Collection[str]) -> str | None:
    if champion["data_hash"] != data_hash:
        return "it was measured on other data"
    if champion["classes"] is None or set(champion["classes"]) != set(classes):
        return "it knows other classes"
    return None
