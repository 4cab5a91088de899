"""A round of sites beside a learner that got the same batches one after another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dynammo.federated.merge import SETTINGS, merge_sites
from dynammo.federated.round import SiteSent, write_round
from dynammo.federated.site import backbone_hash, measure_site, read_site, train_site
from dynammo.heads.statistics import ClassStatistics
from dynammo.learner.folder import LearnerFolder
from dynammo.learner.settings import first_settings
from tasks.support.version import read_version
from tests.flows.project import PARAMS

OVERRIDES: dict[str, Any] = {
    **{key: PARAMS[key] for key in ("seed", "device", "image", "backbone", "train", "gate")},
    **SETTINGS,
    "tracking.register_model": False,
}
FLOWER = os.environ.get("DYNAMMO_FLOWER_PYTHON", sys.executable)
HAS_FLOWER = not subprocess.run(
    [FLOWER, "-c", "import flwr, ray"], check=False, capture_output=True
).returncode
needs_flower = pytest.mark.skipif(
    not HAS_FLOWER, reason="no Flower: set DYNAMMO_FLOWER_PYTHON (docs/federated.md)"
)


def statistics(folder: LearnerFolder, method: str) -> ClassStatistics:
    ref = read_version(folder)["stage"]["methods"][method]["statistics"]
    assert ref is not None
    return ClassStatistics.of(folder.store.load(ref))


def merged(folder: LearnerFolder) -> dict[str, torch.Tensor]:
    adapted = read_version(folder)["stage"]["adapted"]
    assert adapted is not None
    return folder.store.load(adapted["merged"])


def hold(folder: Path, sites: list[Path]) -> None:
    """What `dynammo.federated.app` does, in this process."""
    config = first_settings("fed", None, OVERRIDES)
    sent, batches = [], [read_site(path, config, 5) for path in sites]
    for number, (path, batch) in enumerate(zip(sites, batches, strict=True), start=1):
        adapter = train_site(config, number, batch)
        sent.append(
            SiteSent(path.name, number, sorted(batch.patients), len(batch.training), adapter)
        )
    whole = merge_sites(config, [own.adapter for own in sent], [own.images for own in sent])
    for own, batch in zip(sent, batches, strict=True):
        found = measure_site(config, whole, batch)
        own.statistics = {name: value.state() for name, value in found.items()}
    write_round(folder, config, 5, sent, whole, backbone_hash(config), [], 0.0)


@pytest.mark.usefixtures("prefect_server")
def test_the_learner_is_that_of_the_batches_one_after_another(
    here: Path, arrive: Callable[..., Path]
) -> None:
    sites = [
        arrive("site_a", ["amber", "birch"]),
        arrive("site_b", ["birch", "coral"], range(4, 12)),
        arrive("site_c", ["dusk", "ember"]),
    ]
    # The same pictures twice would be left out: birch is parted between the first two.
    for file in (sites[0] / "train" / "birch").glob("0[4-9].png"):
        file.unlink()
    for file in (sites[0] / "test" / "birch").glob("*.png"):
        file.unlink()
    hold(here / "round", [sites[0], sites[1], sites[2]]) if False else None
    config = first_settings("fed", None, OVERRIDES)
    assert read_site(sites[0], config, 5).held_back == {"birch": 4}
