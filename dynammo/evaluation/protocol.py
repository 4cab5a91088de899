"""A plan carried out: what each update must show, what it showed, and what follows.

Nothing here is read or written: `judge_by_plan` takes the plan and what was measured, and returns
plain values that go into a JSON document as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from dynammo.checkpoint import Ref
from dynammo.evaluation.gate import Comparison, Outcome, not_below
from dynammo.evaluation.honesty import Honesty, as_unknown, left_out, together
from dynammo.evaluation.intervals import Interval, bootstrap_interval, numbered, share_interval
from dynammo.evaluation.metrics import (
    Floats,
    Integers,
    Predictions,
    expected_calibration_error,
    open_set_auroc,
)
from dynammo.evaluation.plan import Limits, Plan
from dynammo.evaluation.strangeness import strangeness
from dynammo.hierarchy import ancestors, costs, groups, mean_cost, within

Verdict = Literal["met", "not met", "not measured"]
_AT_MOST = ("negative_flips", "ece")
IN_WORDS = {
    "passed": "in the plan and passed",
    "failed": "in the plan and failed",
    "outside": "outside the plan",
}


class Requirement(TypedDict):
    """One line of the protocol.

    `limit` is for the end of the interval that is worse; None where the requirement is no number.
    `evidence` are SHA-256 of the files in the learner that it was measured from.
    """

    name: str
    requirement: str
    limit: float | None
    measured: Interval | None
    verdict: Verdict
    detail: str
    evidence: list[str]


class Arrived(TypedDict):
    """Of a class in a batch: images and patients (an image without one counts as its own)."""

    images: int
    test_images: int
    patients: int


class Step(TypedDict):
    """What a `version` changed of its `parent`: types of modification, as the plan calls them, and
    what came of the `new` classes.
    """

    version: int
    parent: int
    modifications: list[str]
    new: dict[str, Arrived]


class ClassRecall(TypedDict):
    """Recall of a class now, and of the champion on the same images of it."""

    new: Interval
    old: Interval | None


class SubgroupGap(TypedDict):
    """Test images with one value of a column: how many, of how many patients, their mean class
    recall, and `change`, that less the one of all other images; None where no class has images on
    both sides.
    """

    images: int
    groups: int
    recall: float | None
    change: Interval | None


class Pair(TypedDict):
    """A number of the champion and of the version on the same images."""

    old: float
    new: float


class GroupRecall(TypedDict):
    """Of a group its `classes`, and `recall`: the share of their test images whose answer is one of
    them. `both`: of the images of the classes that the champion knows, too; none where nothing can
    be compared. `below` is the next group above it that has one.
    """

    classes: list[str]
    below: str | None
    recall: Interval
    both: Pair | None


class ByHierarchy(TypedDict):
    """What answers are worth by what classes belong to (`dynammo.hierarchy`): the mean cost of an
    answer, 0 to 1, as it is and (`both`) compared with the champion's; and each group.
    """

    cost: float | None
    both: Pair | None
    groups: dict[str, GroupRecall]


class Judgement(TypedDict):
    """What the plan says of a version.

    `plan` and `authorised` are none without a plan, when the gate's settings are the protocol;
    `champion` is the version compared with, 0 where there was none. `outside` are reasons.
    `subgroups` has a row for each value of each column kept of test images. `comparison` is with
    the champion, `cumulative` with the authorised version; intervals are of `confidence`. `honesty`
    is none where there are no test images; `hierarchy` is there where one is given.
    """

    outcome: Literal["passed", "failed", "outside"]
    plan: Ref | None
    authorised: int | None
    champion: int
    outside: list[str]
    requirements: list[Requirement]
    confidence: float
    classes: dict[str, ClassRecall]
    subgroups: dict[str, dict[str, SubgroupGap]]
    comparison: Comparison | None
    cumulative: Comparison | None
    honesty: Honesty | None
    hierarchy: NotRequired[ByHierarchy]


class Against(NamedTuple):
    """Another version on the same images: the answers, the comparison, and its evidence."""

    outcome: Outcome
    comparison: Comparison
    evidence: list[str]


class Counted(NamedTuple):
    """Answers to test images of patients who stay unknown, one image of each: the counts of
    `dynammo.federated.judge` told one by one, in an order without meaning. `targets` and
    `predicted` (N,) are indices of classes.
    """

    targets: Integers
    predicted: Integers


class Measured(NamedTuple):
    """What a plan is judged by.

    Args:
        classes: all C that the version knows, in order of arrival.
        predictions: on the test images; targets from C on are unknown classes. None where there are
            none.
        looks: (N, K) of their appearance, where answers go by it to say "unknown".
        groups: N labels of the images.
        columns: of each that is kept of test images, N values.
        evidence: hashes of what these are.
        champion: the comparison with it; none where nothing could be compared.
        authorised: likewise.
        steps: what was changed since the authorised version, oldest first; none if the version does
            not descend from it.
        settings: dotted names of settings that differ from the authorised version's.
        test_hash: of the authorised version's test images, as far as they are still there.
        left_of_tests: the hash that these must have where classes or batches were forgotten since:
            of all their images but those of what was forgotten. None where nothing was.
        counted: what sites counted instead of `predictions`, where no test image is at hand.
    """

    classes: Sequence[str]
    predictions: Predictions | None
    looks: Floats | None
    groups: Sequence[str | None]
    columns: Mapping[str, Sequence[str]]
    evidence: list[str]
    champion: Against | None
    authorised: Against | None
    steps: Sequence[Step] | None
    settings: Sequence[str]
    test_hash: str
    left_of_tests: str | None = None
    counted: Counted | None = None


def judge_by_plan(plan: Plan, measured: Measured) -> tuple[list[str], list[Requirement]]:
    """Why the update is outside the plan, if it is, and every requirement with its verdict.

    What cannot be measured is not met: nobody has shown it. The AUROC of unknown classes is the
    exception, for often there are no images of an unknown class; its verdict says so then.
    """
    requirements = [
        *_arrivals(plan, measured),
        *_locked(plan, measured),
        *_sensitivities(plan.limits, measured),
        *_margins(plan.limits, measured),
        *_flips(plan.limits, measured),
        *_subgroups(plan.limits, measured),
        *_calibration(plan.limits, measured),
        *_unknown(plan.limits, measured),
    ]
    return list(_outside(plan, measured)), requirements


def class_recalls(
    predictions: Predictions | Counted | None,
    groups: Sequence[str | None],
    classes: Sequence[str],
    old: Outcome | None,
    confidence: float,
) -> dict[str, ClassRecall]:
    """Recall of each class with its interval, and the old version's where it was compared.

    Args:
        predictions: none: no class has images.
        groups: of their images.
        classes: all that the version knows.
        old: the answers of both.
        confidence: of the intervals.
    """
    found: dict[str, ClassRecall] = {}
    for index, name in enumerate(classes):
        was = None
        if old is not None and name in old.classes:
            own = old.targets == list(old.classes).index(name)
            hits = (old.predicted_old == old.targets)[own]
            was = share_interval(hits, _of(old.groups, own), confidence)
        targets = predictions.targets if predictions else np.zeros(0, dtype=np.int64)
        mine = targets == index
        right = predictions.predicted[mine] == index if predictions else mine
        found[name] = {"new": share_interval(right, _of(groups, mine), confidence), "old": was}
    return found


def by_hierarchy(
    parents: Mapping[str, str],
    predictions: Predictions | Counted | None,
    patients: Sequence[str | None],
    classes: Sequence[str],
    old: Outcome | None,
    confidence: float,
) -> ByHierarchy:
    """What answers are worth where it is known what classes belong to.

    Args:
        parents: the hierarchy.
        predictions: none: no class has images.
        patients: labels of what belongs together of their images.
        classes: all that the version knows.
        old: the answers of the champion, too.
        confidence: of the intervals.
    """
    nothing = np.zeros(0, dtype=np.int64)
    targets, said = nothing, nothing
    if predictions:
        known = predictions.targets < len(classes)
        targets, said = predictions.targets[known], predictions.predicted[known]
        patients = _of(patients, known)
    cost = mean_cost(targets, said, costs(parents, classes))
    found: dict[str, GroupRecall] = {}
    members_of = groups(parents, classes)
    for name, members in members_of.items():
        right = within(targets, said, members)
        owners = _of(patients, np.isin(targets, members))
        found[name] = {
            "classes": [classes[place] for place in members],
            "below": next((own for own in ancestors(parents, name) if own in members_of), None),
            "recall": share_interval(right, owners, confidence),
            "both": _group_compared(old, name, parents),
        }
    return {
        "cost": None if np.isnan(cost) else cost,
        "both": _cost_compared(old, parents),
        "groups": found,
    }


def _cost_compared(old: Outcome | None, parents: Mapping[str, str]) -> Pair | None:
    if old is None or not len(old.targets) or not _all_named(old):
        return None
    table = costs(parents, [*old.classes, *old.others])
    first, then = (
        mean_cost(old.targets, said, table) for said in (old.predicted_old, old.predicted_new)
    )
    return {"old": first, "new": then}


def _group_compared(old: Outcome | None, group: str, parents: Mapping[str, str]) -> Pair | None:
    """Of the images of the group's classes that both know; answers may be other classes of it."""
    if old is None or not _all_named(old):
        return None
    names = [*old.classes, *old.others]
    members = [place for place, name in enumerate(names) if group in ancestors(parents, name)]
    first, then = (
        within(old.targets, said, members) for said in (old.predicted_old, old.predicted_new)
    )
    return {"old": float(first.mean()), "new": float(then.mean())} if len(first) else None


def _all_named(outcome: Outcome) -> bool:
    """Whether it is known what each answer was, also where it was wrong."""
    return bool((outcome.predicted_old >= 0).all() and (outcome.predicted_new >= 0).all())


def subgroup_gaps(
    predictions: Predictions | None,
    groups: Sequence[str | None],
    values: Sequence[str],
    confidence: float,
    target: int | None = None,
) -> dict[str, SubgroupGap]:
    """Compare the images of each value of a column with all others.

    Of a subgroup g, over the classes c that have images on both sides:

        change_g = mean over c of (recall_c in g - recall_c outside g)

    so that another mix of classes is no difference. The interval is a bootstrap's by patient.

    Args:
        predictions: none: there are no images.
        groups: of the images.
        values: of the column, one an image; empty where it is not given.
        confidence: of the intervals.
        target: only images of this class.
    """
    if predictions is None:
        return {}
    chosen = predictions.targets < predictions.classes
    if target is not None:
        chosen = predictions.targets == target
    targets, classes = predictions.targets[chosen], predictions.classes
    right = predictions.predicted[chosen] == targets
    texts, owners = np.array(values)[chosen], _of(groups, chosen)
    found: dict[str, SubgroupGap] = {}
    for value in sorted(set(texts.tolist())):
        inside = texts == value

        def change(rows: NDArray[np.int64], inside: NDArray[np.bool_] = inside) -> float | None:
            ours, theirs = (
                _recalls(targets[rows[side]], right[rows[side]], classes)
                for side in (inside[rows], ~inside[rows])
            )
            both = ~np.isnan(ours - theirs)
            return float((ours - theirs)[both].mean()) if both.any() else None

        mine, interval = _of(owners, inside), bootstrap_interval(change, owners, confidence)
        images, patients = int(inside.sum()), int(numbered(mine).max()) + 1
        known: Interval = {**interval, "images": images, "groups": patients}
        found[value] = {
            "images": images,
            "groups": patients,
            "recall": float(np.nanmean(_recalls(targets[inside], right[inside], classes))),
            "change": None if interval["value"] is None else known,
        }
    return found


def _recalls(targets: Integers, right: NDArray[np.bool_], classes: int) -> NDArray[np.float64]:
    """(C,): of each class; NaN without images."""
    images = np.bincount(targets, minlength=classes)
    hits = np.bincount(targets, weights=right, minlength=classes)
    found: NDArray[np.float64] = np.full(classes, np.nan)
    np.divide(hits, images, out=found, where=images > 0)
    return found


def worse_ends(requirements: Sequence[Requirement]) -> dict[str, tuple[float, float]]:
    """Of each requirement that is a number: the end of its interval that is judged, and the limit.

    A limit is the least that is asked for, but for negative flips and calibration error, where it
    is the most. What was not measured is left out.
    """
    found = {}
    for row in requirements:
        upper = row["name"].partition(".")[0] in _AT_MOST
        end = row["measured"] and row["measured"]["high" if upper else "low"]
        if end is not None and row["limit"] is not None:
            found[row["name"]] = (end, row["limit"])
    return found


def _outside(plan: Plan, measured: Measured) -> Iterator[str]:
    for name in measured.classes:
        if name not in plan.classes:
            yield f"class {name} is neither authorised nor named in advance"
    if measured.steps is None:
        yield "the version does not descend from the authorised one"
    made = {kind for step in measured.steps or () for kind in step["modifications"]}
    for kind in sorted(made - set(plan.modifications)):
        yield f"modification {kind} is not among those allowed: {', '.join(plan.modifications)}"
    if measured.settings:
        yield f"settings differ from the authorised version's: {', '.join(measured.settings)}"


def _arrivals(plan: Plan, measured: Measured) -> Iterator[Requirement]:
    arrived = {name: own for step in measured.steps or () for name, own in step["new"].items()}
    for named in plan.named:
        if named.name not in arrived or named.name not in measured.classes:
            continue
        came = arrived[named.name]
        wanted = {
            "images": (came["images"], named.images, "training images"),
            "test_images": (came["test_images"], named.test_images, "test images"),
            "patients": (came["patients"], named.patients, "patients"),
        }
        detail = ", ".join(
            f"{has} {what}, at least {least}" for has, least, what in wanted.values()
        )
        enough = all(has >= least for has, least, _ in wanted.values())
        yield _row(
            f"data.{named.name}",
            f"enough images of the new class {named.name}",
            enough,
            detail,
            measured.evidence,
        )


def _locked(plan: Plan, measured: Measured) -> Iterator[Requirement]:
    if plan.locked_test is not None:
        left = measured.left_of_tests
        same = measured.test_hash == (left or plan.locked_test)
        found = f"is now {measured.test_hash[:16]}"
        if same:
            but = " but for the images of what was forgotten on purpose" if left else ""
            found = f"is there, unchanged{but}"
        yield _row(
            "locked_test",
            "the locked test set is measured whole",
            same,
            f"test set {plan.locked_test[:16]} {found}",
            measured.evidence,
        )


def _sensitivities(limits: Limits, measured: Measured) -> Iterator[Requirement]:
    recalls = class_recalls(
        measured.counted or measured.predictions,
        measured.groups,
        measured.classes,
        None,
        limits.confidence,
    )
    for name, recall in recalls.items():
        yield _bounded(
            f"sensitivity.{name}",
            f"sensitivity for {name}, at least",
            limits.sensitivity.of(name),
            recall["new"],
            measured.evidence,
        )


def _margins(limits: Limits, measured: Measured) -> Iterator[Requirement]:
    for other in ("champion", "authorised"):
        margin = getattr(limits.non_inferiority, other)
        against: Against | None = getattr(measured, other)
        words = "the version in use" if other == "champion" else "the authorised version"
        evidence = [*measured.evidence, *(against.evidence if against else [])]
        if margin.mean is not None:
            change = _difference(against.comparison["overall"]) if against else None
            yield _bounded(
                f"non_inferiority.{other}.mean",
                f"change of mean class recall from {words}, at least",
                -margin.mean,
                change,
                evidence,
            )
        if margin.each_class is not None:
            changes = against.comparison["classes"] if against else {}
            for name, own in changes.items():
                yield _bounded(
                    f"non_inferiority.{other}.{name}",
                    f"change of the sensitivity for {name} from {words}, at least",
                    -margin.each_class,
                    _difference(own),
                    evidence,
                )
            if against is None:
                yield _bounded(
                    f"non_inferiority.{other}.each_class",
                    f"change of each class's sensitivity from {words}, at least",
                    -margin.each_class,
                    None,
                    evidence,
                )


def _flips(limits: Limits, measured: Measured) -> Iterator[Requirement]:
    flips, against = limits.negative_flips, measured.champion
    evidence = [*measured.evidence, *(against.evidence if against else [])]

    def share(name: str | None) -> Interval | None:
        if against is None:
            return None
        old = against.outcome
        own = np.ones(len(old.targets), dtype=bool)
        if name is not None:
            own = old.targets == list(old.classes).index(name)
        return share_interval(old.flipped[own], _of(old.groups, own), limits.confidence)

    if flips.overall is not None:
        yield _bounded(
            "negative_flips",
            "images right before and wrong now, at most",
            flips.overall,
            share(None),
            evidence,
            upper=True,
        )
    for name, limit in flips.grave.items():
        if against is not None and name not in against.outcome.classes:
            continue  # new, or forgotten: there is nothing to flip
        yield _bounded(
            f"negative_flips.{name}",
            f"images of {name} right before and wrong now, at most",
            limit,
            share(name),
            evidence,
            upper=True,
        )


def _subgroups(limits: Limits, measured: Measured) -> Iterator[Requirement]:
    for limit in limits.subgroups:
        name, what, target = f"subgroup.{limit.column}", "mean class recall", None
        if limit.sensitivity is not None:
            if limit.sensitivity not in measured.classes:
                continue  # not learnt yet, or forgotten
            name, what = f"{name}.{limit.sensitivity}", f"sensitivity for {limit.sensitivity}"
            target = list(measured.classes).index(limit.sensitivity)
        gaps: Mapping[str, SubgroupGap] = {}
        if limit.column in measured.columns:
            values = measured.columns[limit.column]
            gaps = subgroup_gaps(
                measured.predictions, measured.groups, values, limits.confidence, target
            )
        images, judged = sum(own["images"] for own in gaps.values()), False
        for value, own in gaps.items():
            of = f"{limit.column} {value or 'not given'}"
            row = _bounded(
                f"{name}.{value}",
                f"change of {what} from all other images to those with {of}, at least",
                -limit.gap,
                own["change"],
                measured.evidence,
            )
            rest = images - own["images"]
            if own["change"] and min(own["images"], rest) >= limit.images:
                judged = True
                yield row
            else:
                few = f"{own['images']} images of {own['groups']} patients against {rest} others"
                detail = f"{few}: too few to judge, of less than {limit.images}"
                yield {**row, "verdict": "not measured", "detail": detail}
        if not judged:
            why = "no subgroup has enough test images"
            if limit.column not in measured.columns:
                why = f"no column {limit.column} is kept of test images"
            compared = f"{what} is compared between subgroups by {limit.column}"
            yield _row(name, compared, False, why, measured.evidence)


def _calibration(limits: Limits, measured: Measured) -> Iterator[Requirement]:
    if limits.ece is None:
        return
    interval = None
    if (given := measured.predictions) is not None:
        own = given.targets < given.classes
        known = given.take(own)

        def error(chosen: NDArray[np.int64]) -> float:
            return expected_calibration_error(
                known.targets[chosen], known.predicted[chosen], known.confidence[chosen]
            )

        interval = bootstrap_interval(error, _of(measured.groups, own), limits.confidence)
    yield _bounded(
        "ece", "calibration error, at most", limits.ece, interval, measured.evidence, upper=True
    )


def _unknown(limits: Limits, measured: Measured) -> Iterator[Requirement]:
    if limits.unknown_auroc is None:
        return
    given = measured.predictions
    interval, how = None, "no test image is of an unknown class"
    if given is not None and (given.targets >= given.classes).any():
        known = given.targets < given.classes
        strange: Floats = strangeness(given.scores)
        if measured.looks is not None:
            strange = together(strange, given.targets, measured.looks, known)
        interval = bootstrap_interval(
            lambda chosen: open_set_auroc(known[chosen], -strange[chosen]),
            measured.groups,
            limits.confidence,
        )
        how = "images of classes that it does not know"
    elif given is not None and given.classes > 2:
        left = left_out(given.scores, given.targets, measured.looks)

        def mean(chosen: NDArray[np.int64]) -> float | None:
            found = as_unknown(left[chosen], given.targets[chosen])
            areas = [own for own in found if own is not None]
            return float(np.mean(areas)) if areas else None

        interval = bootstrap_interval(mean, measured.groups, limits.confidence)
        how = "each known class in turn as if unknown: a friendly estimate"
    row = _bounded(
        "unknown_auroc",
        "known images told from those of unknown classes (AUROC), at least",
        limits.unknown_auroc,
        interval,
        measured.evidence,
    )
    if interval is None:
        yield {**row, "verdict": "not measured", "detail": how}
    else:
        yield {**row, "detail": f"{row['detail']} ({how})"}


def _bounded(
    name: str,
    requirement: str,
    limit: float,
    measured: Interval | None,
    evidence: Sequence[str],
    *,
    upper: bool = False,
) -> Requirement:
    """A requirement on the lower end of an interval, or on the upper one."""
    end = measured and (measured["high"] if upper else measured["low"])
    if measured is None or end is None:
        met = False
        few = measured is not None and measured["images"] > 0
        detail = "images of one patient give no interval" if few else "could not be measured"
    else:
        met = not_below(limit, end) if upper else not_below(end, limit)
        detail = f"{told(measured)}; {'upper' if upper else 'lower'} end {_sign(met, upper)} limit"
    row = _row(name, requirement, met, detail, evidence)
    return {**row, "limit": limit, "measured": measured}


def _row(
    name: str, requirement: str, met: bool, detail: str, evidence: Sequence[str]
) -> Requirement:
    return {
        "name": name,
        "requirement": requirement,
        "limit": None,
        "measured": None,
        "verdict": "met" if met else "not met",
        "detail": detail,
        "evidence": list(dict.fromkeys(evidence)),
    }


def told(interval: Interval | Mapping[str, Any]) -> str:
    """`0.83 (0.70 to 0.91) of 54 images of 40 patients`."""
    if interval["value"] is None:
        return "not measured"
    between = ""
    if interval["low"] is not None:
        between = f" ({interval['low']:.3f} to {interval['high']:.3f})"
    return (
        f"{interval['value']:.3f}{between} of {interval['images']} images of "
        f"{interval['groups']} patients"
    )


def _sign(met: bool, upper: bool) -> str:
    if met:
        return "within the"
    return "above the" if upper else "below the"


def _difference(change: Mapping[str, Any]) -> Interval | None:
    if change["difference"] is None:
        return None
    return {
        "images": change["images"],
        "groups": change["groups"],
        "value": change["difference"],
        "low": change["low"],
        "high": change["high"],
    }


def _of(groups: Sequence[Any], chosen: NDArray[np.bool_]) -> list[Any]:
    return [group for group, own in zip(groups, chosen, strict=True) if own]
