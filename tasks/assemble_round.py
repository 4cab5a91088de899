"""What a learner has after a round of sites (`dynammo.federated`): as if it had learnt of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from prefect import task

from dynammo.checkpoint import CheckpointStore, Ref
from dynammo.clinical import Counts, nothing
from dynammo.config import Config
from dynammo.errors import DataError
from dynammo.federated.merge import add_columns, head_of, merge_sites, temperature_of
from dynammo.federated.site import state_hash
from dynammo.heads.statistics import ClassStatistics
from dynammo.methods import METHODS
from tasks.support.stage import Adapted, Clinical, Part, Stage, learnt
from tasks.support.workspace import Context, provenance


@task(name="assemble round", task_run_name="assemble round")
def assemble_round(
    config: Config, held: dict[str, Any], folder: str, backbone: Ref, context: Context
) -> Stage:
    """The state after all sites' batches. What they sent is copied into the learner's store, so
    that a site can be taken out again.

    Args:
        config: of the learner.
        held: the round, as `dynammo.federated.round.read_round` gives it.
        folder: where it is.
        backbone: checkpoint of the frozen network.
        context: of the learner.

    Raises:
        DataError: the sites' backbone is not the learner's, or the merged adapter is not what
            follows from theirs.
        CheckpointError: something of it was changed.
    """
    came, store, sites = (
        CheckpointStore(Path(folder) / "objects"),
        context.checkpoints,
        held["sites"],
    )
    if state_hash(store.load(backbone)) != held["backbone"]:
        raise DataError(f"{folder}: the sites' backbone is not this learner's")

    def copy(kind: str, ref: Ref) -> Ref:
        return store.save(kind, came.load(ref), {"sent": ref["sha256"]})

    known, tasks = list[str](), list[list[str]]()
    for site in sites:
        if new := [name for name in site["classes"] if name not in known]:
            tasks.append(new)
            known += new
    adapters = [copy("adapter", site["adapter"]) for site in sites]
    images = [site["images"] for site in sites]
    merged = merge_sites(config, [store.load(ref) for ref in adapters], images)
    if state_hash(merged) != held["merged"]:
        raise DataError(f"{folder}: the merged adapter does not follow from the sites'")
    parents: dict[str, Any] = {"adapters": adapters, "backbone": backbone}
    form = config.image.form
    nothing = torch.zeros(0, 32, dtype=torch.uint8)
    exemplars = {
        "images": torch.zeros(0, 3, form.height, form.size, dtype=torch.uint8),
        "files": nothing,
        "groups": nothing,
        "counts": torch.zeros(len(known)).long(),
        "seen": torch.zeros(len(known)).long(),
    }
    # The heads that adapters were trained with stay at the sites; the discriminant reads none.
    head_left = store.save("task-head", {}, {"stays": "at the site"})
    adapted: Adapted = {
        "trained": None,
        "numbers": [site["number"] for site in sites],
        "adapters": adapters,
        "heads": [head_left for _ in sites],
        "inputs": {"samples": images} if config.merge.rule == "weighted" else {},
        "merged": store.save("merged", merged, provenance(config.merge, **parents)),
        "features": None,
        "exemplars": store.save("exemplars", exemplars, {"images": 0}),
    }
    stage: Stage = {
        "number": max(adapted["numbers"]),
        "tasks": tasks,
        "adapted": adapted,
        "methods": {},
        "training": [],
    }
    if config.clinical.names:
        stage["clinical"] = _columns(sites, came, store)
    for name in config.methods:
        parts: list[Part] = [
            {
                "batch": site["number"],
                "classes": site["classes"],
                "statistics": copy("batch-statistics", site["statistics"][name]),
                "drift": None,
            }
            for site in sites
        ]
        sent = [ClassStatistics.of(came.load(site["statistics"][name])) for site in sites]
        classes = [own["classes"] for own in parts]
        # Not in rounds of earlier versions.
        told = [(own.get("temperatures", {}).get(name, 1.0), own["images"]) for own in sites]
        _, total, head = head_of(
            config, list(zip(classes, sent, strict=True)), temperature_of(told)
        )
        shared = METHODS[name].shared_adapters
        meta = provenance(config.head, **parents, parts=[own["statistics"] for own in parts])
        stage["methods"][name] = learnt(
            adapter=adapted["merged"] if shared else None,
            heads=[store.save(f"head-{name}", head, meta)],
            exemplars=adapted["exemplars"] if shared else None,
            statistics=store.save("statistics", total.state(), meta),
            parts=parts,
        )
    return stage


def _columns(
    sites: list[dict[str, Any]], came: CheckpointStore, store: CheckpointStore
) -> Clinical:
    """The counts of all sites together, and each site's, which are none of one that sent none."""
    sent: list[tuple[list[str], Counts]] = []
    for site in sites:
        ref = site.get("columns")  # not in rounds of earlier versions
        counts: Counts = came.load_json(ref) if ref else nothing(len(site["classes"]))
        sent.append((site["classes"], counts))
    return {
        "counts": store.save_json("column-counts", add_columns(sent)),
        "parts": [
            {
                "batch": site["number"],
                "classes": classes,
                "counts": store.save_json("batch-column-counts", counts),
            }
            for site, (classes, counts) in zip(sites, sent, strict=True)
        ],
    }
