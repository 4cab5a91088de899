"""The flow of `dynammo federate`: what sites sent in a round becomes a learner."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from prefect import flow, get_run_logger

from dynammo.checkpoint import CheckpointStore
from dynammo.clinical import Counts as ColumnCounts
from dynammo.config import ClinicalConfig, Config, load_config
from dynammo.config.parents import changes
from dynammo.evaluation.metrics import evaluate_counts
from dynammo.evaluation.protocol import Arrived
from dynammo.federated.columns import names_in
from dynammo.federated.judge import Counts
from dynammo.federated.merge import check_federated
from dynammo.federated.round import read_round
from dynammo.learner.folder import LearnerError, now
from dynammo.learner.ledger import Ledger
from dynammo.learner.settings import DEPLOYED, next_settings
from flows.support.learning import check_hierarchy
from flows.support.notify import notify
from flows.support.versions import (
    finish_killed,
    judged,
    killed_when_written,
    taken_up,
    write_version,
)
from tasks.assemble_round import assemble_round
from tasks.prepare_backbone import prepare_backbone, weights_hash
from tasks.support.logs import shorten_expected_errors
from tasks.support.stage import known_classes
from tasks.support.version import (
    Forgotten,
    Learnt,
    Version,
    config_of,
    context_in,
    draft_version,
    find_learner,
    read_version,
)

shorten_expected_errors()
APART = (
    "confidences are calibrated at each site, among its own classes: nobody has all sites' images"
)
UNCALIBRATED = (
    "confidences are not calibrated: no site has measured a temperature, which takes two classes "
    "of five images, some answered wrongly, and statistics without noise"
)
NO_SUBGROUPS = (
    "subgroups are not compared: retention.subgroups keeps columns of test images, and no test "
    "image crossed"
)


@flow(name="dynammo-federate", flow_run_name="{learner}: federate", on_failure=[notify])
def federate(learner: str, held: str) -> dict[str, Any]:
    """Make a learner of a round, or its next version. Its batches are the sites; `forget` takes one
    out again. The gate decides on what the sites counted on their test images.

    Args:
        learner: its name; a new one, or one that a round has made.
        held: folder of the round (`dynammo.federated`).

    Returns:
        As `flows.learn.learn`.

    Raises:
        LearnerError: there is such a learner, and it has learnt images or is of this round.
    """
    folder, document = find_learner(learner), read_round(Path(held))
    config = load_config(None, document["config"])
    check_federated(config)
    step = {"federate": document}
    if killed_when_written(folder).get("federate") == document:
        return finish_killed(folder)
    before = read_version(folder) if folder.exists else None
    if before:
        if "round" not in before:
            raise LearnerError(f"{learner} has learnt images: a round makes a learner of its own")
        if folder.store.load_json(before["round"]) == document:
            raise LearnerError(f"{learner} is already of this round")
        config = next_settings(config_of(before), config.model_dump(mode="json"))
    brought = dict.fromkeys(name for own in document["sites"] for name in own["classes"])
    check_hierarchy(config, [*brought])
    with taken_up(folder, step):
        here = context_in(folder, config, "round")
        own = config.backbone
        backbone = prepare_backbone(
            config.seed, own.name, own.pretrained, own.weights, weights_hash(own), here
        )
        stage = assemble_round(config, document, held, backbone, here)
        batches, known = list[Learnt](), set[str]()
        for site in document["sites"]:
            again = [name for name in site["classes"] if name in known]
            new = [name for name in site["classes"] if name not in known]
            known.update(new)
            batches.append(
                {
                    "number": site["number"],
                    # Of images there is none here: a site is known again by its name.
                    "hash": hashlib.sha256(f"site {site['name']}".encode()).hexdigest(),
                    "at": now(),
                    "new": new,
                    "again": again,
                    "train_images": site["images"],
                    "test_images": _tested(site),
                }
            )
        names = ", ".join(site["name"] for site in document["sites"])
        absent = [f"{own['name']} is left out: {own['reason']}" for own in document["left_out"]]
        absent += [
            f"{own['name']} has not judged the result: {own['reason']}"
            for own in document["silent"]
        ]
        absent += [
            f"{own['name']}: statistics with noise, epsilon {own['epsilon']:g}; its adapter without"
            for own in document["sites"]
            if own["epsilon"]
        ]
        absent += _silent_of_columns(config.clinical, document, Path(held))
        for note in absent:
            get_run_logger().warning(note)
        sent = {"round": here.checkpoints.save_json("round", document)}
        counts = Counts.total(Counts.of(own["tests"]) for own in document["sites"] if own["tests"])
        if counts is not None and counts.confusion.sum():
            sent["counts"] = here.checkpoints.save_json("counts", counts.document())
            flips = _flips(counts, folder.pointer()["champion"] if before else 0)
            metrics = evaluate_counts(
                counts.confusion.numpy(), stage["tasks"], flips, config.classes.hierarchy
            )
            ref = here.checkpoints.save_json(f"metrics-{DEPLOYED}", metrics)
            stage["methods"][DEPLOYED]["evaluated"] = {"metrics": ref, "predictions": None}
        gone: Forgotten = before["forgotten"] if before else {"batches": [], "classes": []}
        here_now = {own["hash"] for own in batches}
        draft = draft_version(
            folder,
            before,
            config,
            Ledger.empty(),
            ["add_named_class", "new_site"] if before is None else _modifications(before, batches),
            _arrived(document, known_classes(before["stage"])) if before else {},
            operation=f"federate {names}",
            backbone=backbone,
            stage=stage,
            batches=batches,
            forgotten=Forgotten(
                batches=[own for own in gone["batches"] if own not in here_now],
                classes=[own for own in gone["classes"] if own not in known],
            ),
            tests=[],
            notes=[
                APART if _calibrated(document) else UNCALIBRATED,
                *([NO_SUBGROUPS] * bool(config.retention.subgroups)),
                *_hierarchy_changed(before, config),
                *absent,
            ],
        )
        version = judged(folder, config, {**draft, **sent}, here)  # type: ignore[typeddict-item]
        made = write_version(folder, config, version, here)
    return made


def _hierarchy_changed(before: Version | None, config: Config) -> list[str]:
    """What classes belong to otherwise than in the round before, as a note."""
    return changes(config_of(before).classes.parents, config.classes.parents) if before else []


def _calibrated(document: dict[str, Any]) -> bool:
    """Whether a site has measured a temperature; in rounds of earlier versions none has."""
    sent = [own.get("temperatures", {}).get(DEPLOYED, 1.0) for own in document["sites"]]
    return any(own != 1 for own in sent)


def _silent_of_columns(clinical: ClinicalConfig, document: dict[str, Any], held: Path) -> list[str]:
    """Which sites say nothing of columns that the learner asks for, and why, as far as is known;
    and which have no value of a category in common with the others, as where it is spelt otherwise.
    """
    store, notes = CheckpointStore(held / "objects"), list[str]()
    sent: dict[str, ColumnCounts] = {
        own["name"]: store.load_json(own["columns"])
        for own in document["sites"]
        if own.get("columns")
    }
    for site in document["sites"]:
        told = names_in(sent[site["name"]]) if site["name"] in sent else []
        if silent := [name for name in clinical.names if name not in told]:
            why = (
                "where statistics have noise, counts stay"
                if site["epsilon"]
                else f"it has none, or of fewer than {document['min_patients']} patients a value"
            )
            notes.append(f"{site['name']} says nothing of {', '.join(silent)}: {why}")
    for name in clinical.categories:
        values = {site: {*own["categories"].get(name, ())} for site, own in sent.items()}
        for site, own in values.items():
            others = set[str]().union(*(more for key, more in values.items() if key != site))
            if own and others and not own & others:
                notes.append(
                    f"{site} has no value of {name} in common with the others: "
                    f"{', '.join(sorted(own))} instead of {', '.join(sorted(others))}"
                )
    return notes


def _tested(site: dict[str, Any]) -> int:
    """How many test images a site has counted."""
    return int(Counts.of(site["tests"]).confusion.sum()) if site["tests"] else 0


def _flips(counts: Counts, champion: int) -> float | None:
    """The share of images that the champion has right and the new version wrong."""
    paired = counts.paired.get(champion)
    if paired is None or not paired.sum():
        return None
    return float(paired[:, 1, 0].sum() / paired.sum())


def _modifications(before: Version, batches: list[Learnt]) -> list[str]:
    """What a further round changes, as a plan calls it."""
    were = {own["hash"] for own in before["batches"]}
    known = set(known_classes(before["stage"]))
    made = ["retrain_same_classes"]
    if any(set(own["new"]) - known for own in batches):
        made.append("add_named_class")
    if any(own["hash"] not in were for own in batches):
        made.append("new_site")
    return sorted(made)


def _arrived(document: dict[str, Any], before: list[str]) -> dict[str, Arrived]:
    """Of new classes, what is known for certain: a site sends none of fewer than k patients."""
    found: dict[str, Arrived] = {}
    order = list(dict.fromkeys(name for own in document["sites"] for name in own["classes"]))
    for site in document["sites"]:
        tested = torch.zeros(len(order)).long()
        if site["tests"]:
            tested = Counts.of(site["tests"]).confusion.sum(1)
        for name in set(site["classes"]) - set(before):
            own = found.setdefault(name, {"images": 0, "test_images": 0, "patients": 0})
            own["images"] += document["min_patients"]
            own["patients"] += document["min_patients"]
            own["test_images"] += int(tested[order.index(name)])
    return found
