"""Checks of new images: alarms on what changed, and no more than promised on what did not."""

from __future__ import annotations

import numpy as np
import pytest

from dynammo.evaluation.appearance import KINDS
from dynammo.evaluation.monitoring import Check, Seen, holm, monitor

CLASSES = ["a", "b"]


def seen(seed: int, images: int, *, shift: float = 0, wide: float = 1, per_group: int = 1) -> Seen:
    """Normal residuals in four dimensions, the images of a group being alike; 80 % are right."""
    random = np.random.default_rng(seed)
    groups = np.arange(images) // per_group
    moved = random.normal(size=(images, 4)) * 0.1 ** (per_group > 1)
    moved += random.normal(size=(images, 4))[groups] * (per_group > 1)
    moved = moved * wide + shift
    targets = random.integers(2, size=images)
    answers = np.where(random.random(images) < 0.8, targets, 1 - targets)
    names = [f"{seed} {group}" for group in groups]
    distances = np.square(moved).sum(1)
    looks = random.normal(size=(images, KINDS))
    return Seen(moved, distances, distances - 100, looks, answers, targets, names)


def alarms(checks: list[Check]) -> list[str]:
    return [check["name"] for check in checks if check["alarm"]]


def test_holm_by_hand() -> None:
    # 3 x 0.01, 2 x 0.03, and 0.04, which may not be less than what comes before it.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]


def test_what_changed_is_named() -> None:
    reference = seen(0, 200)
    assert alarms(monitor(reference, seen(1, 60), CLASSES)) == []
    assert "features" in alarms(monitor(reference, seen(1, 60, shift=0.7), CLASSES))
    assert "distance" in alarms(monitor(reference, seen(1, 60, wide=2), CLASSES))
    new = seen(1, 60)
    one = new._replace(answers=np.zeros(60, dtype=int), targets=np.full(60, -1))
    checks = monitor(reference, one, CLASSES)
    assert "answers" in alarms(checks) and len(checks) == 5  # no label, no recall
    wrong = new._replace(answers=1 - new.targets)
    found = {check["name"]: check for check in monitor(reference, wrong, CLASSES)}
    assert found["recall of a"]["alarm"] and found["recall of a"]["now"] == 0
    better = new._replace(answers=new.targets)
    assert not [own for own in alarms(monitor(reference, better, CLASSES)) if "recall" in own]


def test_another_mix_may_be_the_one_to_compare_with() -> None:
    reference, new = seen(0, 200), seen(1, 60)._replace(answers=np.zeros(60, dtype=int))
    checks = monitor(reference, new, CLASSES, window={"a": 500, "b": 3})
    assert "answers" not in alarms(checks)
    assert checks[2]["now"] == pytest.approx(3 / 503)


def test_a_fifth_that_is_strange_or_looks_otherwise_is_seen() -> None:
    reference, new = seen(0, 300), seen(1, 60)
    few = np.arange(60) < 12
    strange = new._replace(strangeness=np.where(few, 0.0, new.strangeness))
    assert alarms(monitor(reference, strange, CLASSES)) == ["unknown"]
    assert new.looks is not None
    other = new._replace(looks=new.looks + 3 * few[:, None])
    found = monitor(reference, other, CLASSES)
    assert alarms(found) == ["appearance"]
    (own,) = (check for check in found if check["name"] == "appearance")
    assert own["before"] == pytest.approx(0.05, abs=0.01) and own["now"] >= 0.2
    blind = monitor(reference._replace(looks=None), other, CLASSES)
    assert "appearance" not in {check["name"] for check in blind}


@pytest.mark.parametrize("per_group", [1, 10])
def test_unchanged_batches_raise_no_more_alarms_than_promised(per_group: int) -> None:
    """Of 200 at 20 %, a binomial's upper 0.1 % is 58; a test that takes the images of a patient for
    independent ones raises far more.
    """
    raised = sum(
        bool(
            alarms(
                monitor(
                    seen(2 * n, 80, per_group=per_group),
                    seen(2 * n + 1, 40, per_group=per_group),
                    CLASSES,
                    false_alarms=0.2,
                )
            )
        )
        for n in range(200)
    )
    assert raised <= 58
