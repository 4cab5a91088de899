"""The change report: what an update of a learner changed, what was required of it, the verdict.

`write_change` takes one document (`ChangeReport`), which is also its JSON, and computes no metric.
The first page is for whoever decides and has two minutes; the rest is for whoever checks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from dynammo.checkpoint import to_json, write_atomically
from dynammo.evaluation.gate import Comparison
from dynammo.evaluation.plan import ENOUGH
from dynammo.evaluation.protocol import Judgement, Requirement, worse_ends
from dynammo.reporting.figures import WIDTH, data_uri, dress, to_png
from dynammo.reporting.report import NOTHING, percent, template

_OLD, _NEW, _BAD = "#666666", "#0072B2", "#D55E00"
_REASONS = 3  # so many the first page names
_NAMED = 4  # so many classes that images are taken for
_IN_PLAIN_WORDS = {
    "passed": "This kind of change was agreed on, and every limit of the plan is kept",
    "failed": "This kind of change was agreed on, but a limit of the plan is not kept",
    "outside": "This kind of change was not agreed on",
}
_TITLES = {"passed": "Passed", "failed": "Not passed", "outside": "Outside the plan"}


class Flip(TypedDict):
    """An image that one of two versions has right: its class, both answers, and its PNG."""

    actual: str
    before: str
    now: str
    png: bytes


class Changed(NamedTuple):
    """A class with images that are `lost`, no longer right, or newly right (`gained`), and those of
    which there is a picture: the lost ones first.
    """

    name: str
    lost: int
    gained: int
    flips: list[Flip]


class Standing(TypedDict):
    """A time in which a version was in use: from when, `reason` if it was against the gate, and
    until when, and which version came `then`; none of both as long as it is.
    """

    version: int
    at: str
    reason: str | None
    until: str | None
    then: int | None


class ChangeReport(TypedDict):
    """All that the report says.

    `waits`: it passed, and a person has to put it into use. `gone` are classes that the champion
    knows and the version does not. `taken_for` is, of a class, what its test images that are not
    found are called, and how many; of a class that is gone, of all, where it was measured.
    `hierarchy` names the file of what classes belong to, if there is one.
    `batches` are those learnt since the champion; `evidence` from SHA-256 to file name in the
    learner; `standing` tells when the version was in use.
    """

    learner: str
    version: int
    parent: int
    operation: str
    at: str
    passed: bool
    waits: bool
    modifications: list[str]
    gone: list[str]
    taken_for: dict[str, dict[str, int]]
    judgement: Judgement
    plan: dict[str, Any] | None
    hierarchy: str | None
    batches: list[dict[str, Any]]
    evidence: dict[str, str]
    standing: list[Standing]
    rollback: int
    retention: str
    software: dict[str, str]
    notes: list[str]


def write_change(report: ChangeReport, html: Path, flips: Sequence[Flip] = ()) -> Path:
    """Write the report as a self-contained page, and as JSON beside it.

    Args:
        report: the document.
        html: file; the JSON has its name with the ending `.json`.
        flips: pictures for the page; they are not in the JSON.

    Returns:
        The page's path.
    """
    write_atomically(html.with_suffix(".json"), to_json({"format": 1, **report}))
    write_atomically(html, _html(report, flips).encode())
    return html


def sentence(report: ChangeReport) -> str:
    """What the update did, in a few plain words."""
    judgement, number = report["judgement"], report["version"]
    names = list(judgement["classes"])
    change, gone = judgement["comparison"], ""
    if report["gone"]:
        gone = (
            f" It can no longer name {_listed(report['gone'])}: such an image is called something "
            "else, or of no known class."
        )
        gone += "".join(_taken(name, report["taken_for"].get(name)) for name in report["gone"])
    if change is None or change["overall"]["difference"] is None:
        values = [
            own["new"]["value"]
            for own in judgement["classes"].values()
            if own["new"]["value"] is not None
        ]
        known = f"Version {number} of {report['learner']} knows {_listed(names)}"
        if not values:
            return f"{known}; how well is not known, for there are no test images.{gone}"
        mean = percent(sum(values) / len(values))
        return (
            f"{known}. It finds {mean} % of their test images, each class weighing the same.{gone}"
        )
    overall = change["overall"]
    new = [name for name in names if name not in change["classes"]]
    old = f"version {judgement['champion']}"
    what = f"adds {_listed(new)} to {old}" if new else f"changes {old}"
    return (
        f"Version {number} of {report['learner']} {what}.{gone}{_found(new, judgement)} Of the "
        f"classes that both know it finds {percent(overall['new'])} % of the test images, each "
        f"class weighing the same; {old} finds {percent(overall['old'])} %. Of these "
        f"{overall['images']} images, {overall['negative_flips']} were right before and are wrong "
        f"now, and {sum(own.gained for own in changed_classes(change))} the other way round."
    )


def _found(new: Sequence[str], judgement: Judgement) -> str:
    """` Of what is new, it finds 80.0 % of 20 test images of b.`; empty without new classes."""
    told = []
    for name in new:
        own = judgement["classes"][name]["new"]
        if own["value"] is None:
            told.append(f"how much of {name} it finds is not known, for there are no test images")
        else:
            told.append(f"it finds {percent(own['value'])} % of {_images(own['images'])} of {name}")
    return f" Of what is new, {_listed(told)}." if told else ""


def _taken(name: str, taken: Mapping[str, int] | None) -> str:
    """` Of 24 test images of wart, it takes 15 for scar and 9 for mole.`; empty if not measured."""
    if not taken:
        return ""
    return f" Of {_images(sum(taken.values()))} of {name}, it takes {called(taken)}."


def trusted(report: ChangeReport) -> dict[str, tuple[int, float]]:
    """Of each class that is answered: how many answers say so, and which share of them is right
    (the positive predictive value among the test images). Empty where answers are not kept.
    """
    classes = report["judgement"]["classes"]
    wrong: Counter[str] = Counter()
    for name, taken in report["taken_for"].items():
        if name in classes:
            wrong.update(taken)
    found = {}
    for name, own in classes.items():
        right = round((own["new"]["value"] or 0) * own["new"]["images"])
        if report["taken_for"] and (answers := right + wrong[name]):
            found[name] = (answers, right / answers)
    return found


def called(taken: Mapping[str, int]) -> str:
    """`15 for scar, 9 for mole and 2 for others`: at most four classes by name."""
    ordered = sorted(taken.items(), key=lambda own: (-own[1], own[0]))  # JSON has them by name
    told = [f"{images} for {name}" for name, images in ordered[:_NAMED]]
    others = sum(images for _, images in ordered[_NAMED:])
    return _listed([*told, *([f"{others} for others"] if others else [])])


def _images(images: int) -> str:
    return "1 test image" if images == 1 else f"{images} test images"


def changed_classes(comparison: Comparison | None, flips: Sequence[Flip] = ()) -> list[Changed]:
    """The classes of a comparison, in its order, with the images that became wrong or right.

    Args:
        comparison: with the version before; none where there is nothing to compare.
        flips: images of which there is a picture, of the comparison's classes.
    """
    found = []
    for name, own in (comparison["classes"] if comparison else {}).items():
        lost = own["negative_flips"]
        gained = lost + round(own["images"] * (own["difference"] or 0))
        shown = [flip for flip in flips if flip["actual"] == name]
        found.append(Changed(name, lost, gained, sorted(shown, key=_newly_right)))
    return found


def _flipped(changed: Sequence[Changed]) -> str:
    """`No longer right: 3 of MEL. Newly right: 1 of MEL and 2 of NV.`; empty where none flipped."""
    lost = [f"{own.lost} of {own.name}" for own in changed if own.lost]
    gained = [f"{own.gained} of {own.name}" for own in changed if own.gained]
    told = {"No longer right": lost, "Newly right": gained}
    return " ".join(f"{which}: {_listed(own)}." for which, own in told.items() if own)


def grouped(report: ChangeReport) -> str:
    """`Of 40 test images of malignant (BCC, MEL), 90.0 % are answered with a class of malignant.`,
    of the highest groups, at most four; empty without a hierarchy or images.
    """
    found = report["judgement"].get("hierarchy")
    told = []
    for name, own in (found["groups"] if found else {}).items():
        if own["below"] is None and own["recall"]["value"] is not None:
            told.append(
                f"Of {_images(own['recall']['images'])} of {name} ({', '.join(own['classes'])}), "
                f"{percent(own['recall']['value'])} % are answered with a class of {name}."
            )
    return " ".join(told[:_NAMED])


def _newly_right(flip: Flip) -> bool:
    return flip["now"] == flip["actual"]


def verdict(report: ChangeReport) -> str:
    """The outcome, and what follows from it."""
    judgement = report["judgement"]
    if judgement["plan"]:
        said = _IN_PLAIN_WORDS[judgement["outcome"]]
    else:
        kept = "every limit" if report["passed"] else "not every limit"
        said = f"No plan is in force; {kept} of the settings is kept"
    number = report["version"]
    stays = (
        f"version {judgement['champion']} stays in use"
        if judgement["champion"]
        else "it is not used"
    )
    if report["waits"]:
        order = f"dynammo promote {report['learner']} {number}"
        return f"{said}. Version {number} waits for a person to run {order}; until then {stays}."
    if not report["standing"]:
        never = f"version {number} was not put into use" if report["passed"] else stays
        return f"{said}: {never}."
    first, last = report["standing"][0], report["standing"][-1]
    came = f"version {number} came into use on {_day(first['at'])}"
    if first["reason"] and not report["passed"]:
        came = f"{came} all the same, for this reason: {first['reason'].rstrip('.')}"
    if last["until"]:
        came = f"{came}. Since {_day(last['until'])} version {last['then']} is in use instead"
    return f"{said}: {came}."


def nearest(report: ChangeReport) -> str:
    """What is closest to its limit of what is kept; empty unless a version passes limits that are
    numbers.
    """
    met = [row for row in report["judgement"]["requirements"] if row["verdict"] == "met"]
    ends = worse_ends(met)
    if not report["passed"] or not ends:
        return ""
    closest = min(ends, key=lambda name: abs(ends[name][0] - ends[name][1]))
    return _reason(next(row for row in met if row["name"] == closest))


def _day(at: str) -> str:
    return at.partition("T")[0]


def reasons(report: ChangeReport) -> list[str]:
    """Why a version does not go into use, at most three and how many more."""
    if report["passed"]:
        return []
    judgement = report["judgement"]
    found = [
        *judgement["outside"],
        *(_reason(row) for row in judgement["requirements"] if row["verdict"] == "not met"),
    ]
    more = len(found) - _REASONS
    return [*found[:_REASONS], *([f"and {more} more"] if more > 0 else [])]


def _reason(row: Requirement) -> str:
    """As the first page says it: what is asked of a class in images, all else as it is judged."""
    own = row["measured"]
    if row["name"].startswith("sensitivity.") and own and own["low"] is not None:
        return (
            f"{row['name'].partition('.')[2]}: {percent(own['value'])} % of its images are found; "
            f"the lower end of the interval is {percent(own['low'])} % and must reach "
            f"{percent(row['limit'])} %"
        )
    return f"{row['requirement']} {_limit(row)}: {row['detail']}".replace(" :", ":")


def recalls(report: ChangeReport) -> Figure:
    """Recall of each class by both versions, with intervals; in orange what a limit stops."""
    judgement, number = report["judgement"], report["version"]
    names = list(judgement["classes"])
    figure = Figure(
        figsize=(WIDTH, 1.5 + 0.42 * len(names)), layout=ConstrainedLayoutEngine(hspace=0.02)
    )
    axes = figure.subplots()
    dress(axes, "How many images of each class are found", "")
    failed, limits = _failed(judgement["requirements"]), _sensitivity_limits(judgement)
    for place, name in enumerate(names):
        row = len(names) - place
        own = judgement["classes"][name]
        colour = _BAD if name in failed else _NEW
        for interval, height, shade, face in (
            (own["old"], row + 0.14, _OLD, "white"),
            (own["new"], row - 0.14, colour, colour),
        ):
            if interval is None or interval["value"] is None:
                continue
            if interval["low"] is not None and interval["high"] is not None:
                ends = [100 * interval["low"], 100 * interval["high"]]
                axes.plot(ends, [height] * 2, color=shade, lw=2)
            value = 100 * interval["value"]
            axes.plot(value, height, "o", color=shade, markerfacecolor=face, markersize=7)
        if name in limits:
            axes.plot([100 * limits[name]] * 2, [row - 0.36, row + 0.36], color="black", lw=1.5)
    axes.set_yticks(range(len(names), 0, -1), names)
    axes.set_ylim(0.4, len(names) + 0.6)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("share of the class's test images found, %")
    keys = [
        Line2D([], [], marker="o", color=_NEW, label=f"version {number}"),
    ]
    if old := judgement["champion"]:
        said = f"version {old}, in use then"
        keys.insert(0, Line2D([], [], marker="o", color=_OLD, markerfacecolor="white", label=said))
    if set(names) & failed:
        keys.append(Line2D([], [], marker="o", color=_BAD, label="a requirement not met"))
    if limits:
        keys.append(Line2D([], [], color="black", lw=1.5, label="the lower end must reach"))
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False)
    return figure


def _failed(requirements: Sequence[Requirement]) -> set[str]:
    """Classes of which a requirement is not met: the last part of its name."""
    return {
        row["name"].split(".", 2 if row["name"].startswith("non_inferiority.") else 1)[-1]
        for row in requirements
        if row["verdict"] == "not met" and "." in row["name"]
    }


def _sensitivity_limits(judgement: Judgement) -> dict[str, float]:
    return {
        row["name"].partition(".")[2]: row["limit"]
        for row in judgement["requirements"]
        if row["name"].startswith("sensitivity.") and row["limit"]
    }


def _limit(row: Requirement) -> str:
    return "" if row["limit"] is None else f"{row['limit']:.3f}".rstrip("0").rstrip(".")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def interval_text(own: Mapping[str, Any] | None, scale: str = "share") -> str:
    """`62.5 (50.1 to 73.3)`, in per cent; of a change or a gap with its sign."""
    value = None if own is None else own["difference" if scale == "change" else "value"]
    if own is None or value is None:
        return NOTHING
    sign = "" if scale == "share" else "+"
    if own["low"] is None:
        return f"{100 * value:{sign}.1f}"
    return (
        f"{100 * value:{sign}.1f} ({100 * own['low']:{sign}.1f} to {100 * own['high']:{sign}.1f})"
    )


def _html(report: ChangeReport, flips: Sequence[Flip]) -> str:
    judgement = report["judgement"]
    changed = changed_classes(judgement["comparison"], flips)
    labels = {digest: f"E{place}" for place, digest in enumerate(report["evidence"], start=1)}
    return template(
        "change.html.j2", called=called, interval=interval_text, limit=_limit, png=data_uri
    ).render(
        report=report,
        judgement=judgement,
        outcome=judgement["outcome"],
        title=_TITLES[judgement["outcome"]] + ", waits for a person" * report["waits"],
        sentence=sentence(report),
        verdict=verdict(report),
        reasons=reasons(report),
        nearest=nearest(report),
        picture=to_png(recalls(report)),
        trusted=trusted(report),
        labels=labels,
        changed=changed,
        flipped=_flipped(changed),
        grouped=grouped(report),
        enough=partial(enough_images, report["plan"]),
    )


def enough_images(plan: Mapping[str, Any] | None, column: str) -> int:
    """Test images that a subgroup must have to be judged, by the plan if that says so."""
    limits = plan["limits"].get("subgroups", []) if plan else []
    return min((own["images"] for own in limits if own["column"] == column), default=ENOUGH)
