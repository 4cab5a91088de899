"""A learner's plan of changes: put into force, read, and drafted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from dynammo.checkpoint import Ref, to_json
from dynammo.errors import ConfigError
from dynammo.evaluation.plan import STATED, Modification, Plan, read_plan
from dynammo.learner.folder import LearnerError, LearnerFolder
from tasks.sign_learner import check_signer, sign_learner
from tasks.support.stage import known_classes
from tasks.support.version import Tested, Version, config_of, read_version


def set_plan(folder: LearnerFolder, path: Path, key: str | None = None) -> Plan:
    """Put a plan into force: the champion is the version that it authorises.

    Args:
        folder: of the learner.
        path: of the plan.
        key: file of the private key that signs the learner in the same step.

    Raises:
        ConfigError: the plan is wrong, or does not fit the champion. All problems at once.
        LearnerError: there is no champion.
        SignatureError: the key cannot sign, or is not that of DYNAMMO_PUBLIC_KEY.
    """
    plan, signer = read_plan(path), check_signer(key, None)
    with folder.lock():
        version = _champion(folder)
        known, problems = known_classes(version["stage"]), []
        if set(plan.authorised) != set(known):
            problems.append(
                f"authorised must be the classes that the champion knows: {', '.join(known)}; got "
                f"{', '.join(plan.authorised)}"
            )
        found = hash_of_tests(version["tests"])
        if plan.locked_test and "counts" in version:
            problems.append("locked_test must be null: the sites keep the test images")
        elif plan.locked_test not in (None, found):
            problems.append(f"locked_test: the champion's test images have the hash {found}")
        config = config_of(version)
        kept = [*config.retention.subgroups, *config.clinical.names]
        problems += [
            f"limits.subgroups: {name!r} is not kept of the champion's test images "
            f"(retention.subgroups: {', '.join(kept) or 'nothing'})"
            for name in sorted({own.column for own in plan.limits.subgroups} - {*kept})
        ]
        if plan.limits.subgroups and kept and not version["tests"]:
            problems.append(
                "limits.subgroups: the champion keeps no test image to compare (of a federated "
                "learner none leaves its site)"
            )
        if problems:
            raise ConfigError(problems)
        folder.agree(folder.store.save_json("plan", plan.model_dump(mode="json")))
        if signer:
            sign_learner(folder, signer)
    return plan


def plan_of(folder: LearnerFolder, ref: Ref | None = None) -> Plan | None:
    """A plan, or the one in force; none if there is none."""
    plans = folder.pointer()["plans"] if folder.exists and ref is None else []
    ref = plans[-1]["plan"] if plans else ref
    return None if ref is None else Plan.model_validate(folder.store.load_json(ref))


def draft(folder: LearnerFolder) -> str:
    """A plan to be filled in, for the champion as it is."""
    version = _champion(folder)
    locked = "null" if "counts" in version else hash_of_tests(version["tests"])
    classes = json.dumps(known_classes(version["stage"]), ensure_ascii=False)  # names may be YAML
    return f"""\
device: {folder.name}
intended_use: TO BE FILLED IN
authorised: {classes}
named: []  # - {{name: NEW, images: 50, test_images: 20, patients: 20}}
modifications: [retrain_same_classes]  # {", ".join(get_args(Modification))}
locked_test: {locked}
limits:
  confidence: 0.95
  sensitivity: {{every_class: 0.5, classes: {{}}}}
  non_inferiority:
    champion: {{mean: 0.05, each_class: 0.2}}
    authorised: {{mean: 0.05, each_class: 0.2}}
  negative_flips: {{overall: 0.1, grave: {{}}}}
  ece: 0.2
rollback: {{to: champion_before, when: TO BE FILLED IN}}
signatures: []
"""


def check_stated(modifications: Sequence[str]) -> list[str]:
    """Modifications that the user states, in order and once each.

    Raises:
        ConfigError: one that is none, or that the batch tells by itself.
    """
    if wrong := [kind for kind in modifications if kind not in STATED]:
        raise ConfigError(
            [f"modification {wrong[0]!r}: expected {', '.join(STATED)}; the rest is seen"]
        )
    return sorted(set(modifications))


def hash_of_tests(tests: Sequence[Tested], batches: Sequence[int] | None = None) -> str:
    """SHA-256 that names test images: their labels, and keyed hashes of files and patients.

    Args:
        tests: as they are kept.
        batches: only those of these.
    """
    own = {
        str(test["batch"]): test["kept"]["labels"]["sha256"]
        for test in tests
        if batches is None or test["batch"] in batches
    }
    return hashlib.sha256(to_json(own)).hexdigest()


def _champion(folder: LearnerFolder) -> Version:
    number = folder.pointer()["champion"]
    if not number:
        raise LearnerError(f"{folder.name} has no champion yet that a plan could authorise")
    return read_version(folder, number)
