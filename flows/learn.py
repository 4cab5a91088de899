"""The flow of `dynammo learn`: a learner and a batch of images become its next version.

The batch's images are read once; what is kept of them is what `retention` says. Run it with
`dynammo learn NAME BATCH`, or as the deployment `dynammo/learn`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from flows.support.arrival import (
    configured,
    draft_learnt,
    keep_tests,
    learnt_from,
    read_batch,
    was_answered,
)
from flows.support.learning import at, learn_batch, start
from flows.support.notify import notify
from flows.support.versions import (
    evaluated,
    finish_killed,
    judged,
    killed_when_written,
    taken_up,
    write_version,
)
from tasks.check_repeats import check_repeats
from tasks.fetch_learner import find_or_fetch
from tasks.sign_learner import check_signed
from tasks.support.logs import shorten_expected_errors
from tasks.support.plans import check_stated
from tasks.support.version import context_in
from tasks.version_data import prepare_images, write_batch

shorten_expected_errors()


@flow(name="dynammo", flow_run_name="{learner}: learn", on_failure=[notify])
def learn(
    learner: str,
    batch: str,
    params: str | None = None,
    overrides: dict[str, Any] | None = None,
    modifications: list[str] | None = None,
    public_key: str | None = None,
) -> dict[str, Any]:
    """Learn a batch: new classes, further images of known ones, or both.

    Args:
        learner: its name, or the registered model that holds it: `models:/dynammo-skin@champion`.
            A name that is not known yet makes a learner.
        batch: folder of images, or a CSV (`dynammo.learner.batch`).
        params: YAML file of the configuration; for a new learner.
        overrides: settings that win over the file, or, of a known learner, over those it has.
        modifications: what the batch does not tell by itself: new_site, new_scanner, recalibrate.
        public_key: file of the key that must have signed the version that this builds on; default:
            DYNAMMO_PUBLIC_KEY, and without that none.

    Returns:
        `learner`, the `version` made, whether it is `champion`, whether it passed and `waits` for
        `dynammo promote`, and its `outcome` by the plan.
    """
    stated = check_stated(modifications or [])
    folder = find_or_fetch(learner)
    config, before = configured(folder, params, overrides or {})
    killed = killed_when_written(folder).get("learn")
    if before and killed and killed == learnt_from(Path(batch), folder, config, before):
        return finish_killed(folder)
    check_signed(folder, public_key)
    arrival = read_batch(Path(batch), folder, config, before)
    step = {
        "learn": arrival.images.content_hash,
        "config": config.model_dump(mode="json"),
        "number": arrival.number,
        "modifications": stated,
    }
    with taken_up(folder, step):
        own = write_batch(arrival.images, arrival.number, arrival.classes, folder.work)
        images = prepare_images(
            own["manifest"], config.image, config.data.repeats, str(folder.work / "images")
        )
        here = at(context_in(folder, config), own, images, f"batch {arrival.number}")
        if before:
            check_repeats(before["tests"], before["stage"], config.data.repeats, here)
        backbone = before["backbone"] if before else start(config, own, here)
        stage = learn_batch(config, own, backbone, before["stage"] if before else None, here)
        tests = keep_tests(config, before, own, stage, here)
        stage = evaluated(config, backbone, stage, was_answered(before), tests, here)
        draft = draft_learnt(folder, before, config, arrival, own, stated, backbone, stage, tests)
        made = write_version(folder, config, judged(folder, config, draft, here), here)
    return made
