"""The flow of `dynammo federate`: what sites sent in a round becomes a learner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger

from dynammo.config import load_config
from dynammo.federated.merge import check_federated
from dynammo.federated.round import read_round
from dynammo.learner.folder import LearnerError, now
from dynammo.learner.ledger import Ledger
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
from tasks.support.version import Forgotten, Learnt, context_in, draft_version, find_learner

shorten_expected_errors()
UNCALIBRATED = (
    "confidences are not calibrated: that needs images, and none crossed; answers do not depend "
    "on it"
)
NO_SUBGROUPS = (
    "subgroups are not compared: retention.subgroups keeps columns of test images, and no test "
    "image crossed"
)


@flow(name="dynammo-federate", flow_run_name="{learner}: federate", on_failure=[notify])
def federate(learner: str, held: str) -> dict[str, Any]:
    """Make a learner of a round. Its batches are the sites; `forget` takes one out again.

    Args:
        learner: its name; a new one.
        held: folder of the round (`dynammo.federated`).

    Returns:
        As `flows.learn.learn`.

    Raises:
        LearnerError: there is such a learner.
    """
    folder, document = find_learner(learner), read_round(Path(held))
    config = load_config(None, document["config"])
    check_federated(config)
    step = {"federate": document}
    if killed_when_written(folder) == {**step, "parent": 0}:
        return finish_killed(folder)
    if folder.exists:
        raise LearnerError(f"there is a learner {learner!r}: a round makes a new one")
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
                    "hash": site["adapter"]["sha256"],  # of images there is none here
                    "at": now(),
                    "new": new,
                    "again": again,
                    "train_images": site["images"],
                    "test_images": 0,
                }
            )
        names = ", ".join(site["name"] for site in document["sites"])
        absent = [f"{own['name']} is left out: {own['reason']}" for own in document["left_out"]]
        for note in absent:
            get_run_logger().warning(note)
        draft = draft_version(
            folder,
            None,
            config,
            Ledger.empty(),
            ["add_named_class", "new_site"],
            {},
            operation=f"federate {names}",
            backbone=backbone,
            stage=stage,
            batches=batches,
            forgotten=Forgotten(batches=[], classes=[]),
            tests=[],
            notes=[UNCALIBRATED, *([NO_SUBGROUPS] * bool(config.retention.subgroups)), *absent],
        )
        # Which site sent what, by hash; kept with the version.
        sent = here.checkpoints.save_json("round", document)
        version = judged(folder, config, {**draft, "round": sent}, here)
        made = write_version(folder, config, version, here)
    return made
