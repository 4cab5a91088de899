"""The flow of `dynammo promote` and `dynammo rollback`: a version becomes champion."""

from __future__ import annotations

from typing import Any

from prefect import flow

from dynammo.learner.folder import LearnerError
from tasks.publish_version import show_version
from tasks.report_change import report_of, write_change_report
from tasks.sign_learner import check_signed, check_signer, sign_learner
from tasks.support.logs import shorten_expected_errors
from tasks.support.version import find_learner, read_version

shorten_expected_errors()


@flow(name="dynammo-promote", flow_run_name="{learner}: dynammo-promote")
def promote(
    learner: str,
    version: int,
    reason: str | None = None,
    back: bool = False,
    public_key: str | None = None,
    key: str | None = None,
) -> dict[str, Any]:
    """Make a version champion, here and in MLflow.

    Args:
        learner: its name.
        version: its number.
        reason: why, where the gate was not passed.
        back: whether learning goes on from it, too.
        public_key: file of the key that must have signed the version, or that `key` must belong
            to; default: DYNAMMO_PUBLIC_KEY, and without that none.
        key: file of the private key that signs the learner in the same step.

    Raises:
        LearnerError: the version did not pass the gate, and there is no reason; nor was it champion
            before, to go back to.
        SignatureError: it is not signed by the key, or cannot be signed.
    """
    folder, signer = find_learner(learner), check_signer(key, public_key)
    if signer is None:
        check_signed(folder, public_key, [version])
    gate = read_version(folder, version)["gate"]
    before = back and version in (own["version"] for own in folder.pointer()["champions"])
    if not (before or gate["passed"] or (reason and reason.strip())):
        failed = "; ".join(check["detail"] for check in gate["checks"] if not check["passed"])
        raise LearnerError(
            f"version {version} did not pass the gate and needs a reason to be champion: {failed}"
        )
    with folder.lock():
        was = folder.pointer()["champion"]
        if back:
            folder.rollback(version)
        else:
            folder.promote(version, reason)
        show_version(folder)
        if signer:
            sign_learner(folder, signer)
        for number in {was, version}:  # both say now which is in use since when, and why
            if report_of(folder, number).is_file():
                write_change_report(folder, number)
    return {"learner": learner, "champion": version}
