"""Write the change report of a learner's version."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from dynammo.checkpoint import check_writable, references_in
from dynammo.data.formats.pictures import sheet
from dynammo.errors import ConfigError
from dynammo.learner.folder import Change, LearnerFolder
from dynammo.reporting.change import ChangeReport, Flip, Standing, write_change
from dynammo.reporting.figures import thumbnail
from tasks.compare_versions import answers_of
from tasks.judge_version import counted_answers
from tasks.support.plans import plan_of
from tasks.support.stage import known_classes
from tasks.support.version import Version, config_of, context_in, read_version, waits


def report_of(folder: LearnerFolder, number: int) -> Path:
    """Where the report of a version is."""
    return folder.path / "reports" / f"{number:04d}.html"


def write_change_report(
    folder: LearnerFolder, number: int, output: Path | None = None, *, pictures: bool = False
) -> Path:
    """Write a version's change report, HTML with the JSON beside it.

    Args:
        folder: of the learner.
        number: of the version.
        output: the HTML file; default: in the learner's folder.
        pictures: show the images that became wrong or right. Only outside the learner's folder:
            what is held of images there must be found again to be removed.

    Returns:
        The HTML file.

    Raises:
        LearnerError: there is no such version.
        ConfigError: pictures in the learner's folder, or of images that are not kept.
    """
    version = read_version(folder, number)
    flips: list[Flip] = []
    if pictures:
        if output is None or output.absolute().resolve().is_relative_to(folder.path.resolve()):
            raise ConfigError(["pictures are written outside the learner's folder only"])
        flips = list(_flips(folder, version))
    target = output or report_of(folder, number)
    if output is not None:
        check_writable(output)
    return write_change(change_of(folder, number, version), target, flips)


def change_of(folder: LearnerFolder, number: int, version: Version) -> ChangeReport:
    """All that the change report of a version says."""
    judgement = version["judgement"]
    plan = plan_of(folder, judgement["plan"]) if judgement["plan"] else None
    pointer = folder.pointer()
    others = {judgement["champion"], judgement["authorised"] or 0} - {0}
    documents = {other: read_version(folder, other) for other in sorted(others)}
    known = {own["hash"] for other in documents.values() for own in other["batches"]}
    files = {
        ref["sha256"]: f"objects/{ref['path']}"
        for ref in references_in([version, *documents.values()])
    }
    document = (folder.path / "versions" / f"{number:04d}.json").read_bytes()
    evidence = {hashlib.sha256(document).hexdigest(): f"versions/{number:04d}.json"}
    if judgement["plan"]:
        evidence[judgement["plan"]["sha256"]] = f"objects/{judgement['plan']['path']}"
    for row in judgement["requirements"]:
        for digest in row["evidence"]:
            evidence.setdefault(digest, files.get(digest, "measured then, not kept"))
    config = config_of(version)
    parents = config.classes.parents
    back = judgement["champion"]
    if plan and plan.rollback.to == "authorised":
        back = judgement["authorised"] or back
    return {
        "learner": folder.name,
        "version": number,
        "parent": version["parent"],
        "operation": version["operation"],
        "at": version["at"],
        "passed": version["gate"]["passed"],
        "waits": waits(pointer, number, version),
        "modifications": version["steps"][-1]["modifications"],
        "gone": _gone(documents.get(judgement["champion"]), version),
        "taken_for": {**_missed(folder, version), **version.get("taken_for", {})},
        "judgement": judgement,
        "plan": plan.model_dump(mode="json") if plan else None,
        "hierarchy": f"{parents.file}, SHA-256 {parents.sha256}" if parents else None,
        "batches": [{**own} for own in version["batches"] if own["hash"] not in known],
        "evidence": evidence,
        "standing": _standing(pointer["champions"], number),
        "rollback": back,
        "retention": config.retention.test,
        "software": version["versions"],
        "notes": version["notes"],
    }


def _gone(champion: Version | None, version: Version) -> list[str]:
    """Classes that the champion of then knows and the version does not."""
    now = known_classes(version["stage"])
    before = known_classes(champion["stage"]) if champion else []
    return [name for name in before if name not in now]


def _standing(champions: Sequence[Change], number: int) -> list[Standing]:
    """When a version came into use and, but for the last, which one took its place and when. What
    it was already it did not become again.
    """
    versions = [0, *(own["version"] for own in champions)]
    came = [own for own, was in zip(champions, versions, strict=False) if own["version"] != was]
    return [
        {**own, "until": then["at"] if then else None, "then": then["version"] if then else None}
        for own, then in zip_longest(came, came[1:])
        if own["version"] == number
    ]


def _missed(folder: LearnerFolder, version: Version) -> dict[str, dict[str, int]]:
    """Of each class that the version knows, what its test images that it does not find are called,
    and how many of them; of what sites counted, too.
    """
    names, context = known_classes(version["stage"]), context_in(folder, config_of(version))
    counted = counted_answers(version, context)
    if counted is not None:
        pairs = Counter(zip(counted.targets.tolist(), counted.predicted.tolist(), strict=True))
        answers = Counter({(names[a], names[b]): images for (a, b), images in pairs.items()})
    else:
        answers = Counter(
            pair
            for own in answers_of(version, context).values()
            for pair in zip(own.actual, own.predicted, strict=True)
        )
    found: dict[str, dict[str, int]] = {}
    for (actual, called), images in answers.items():
        if actual in names and actual != called:
            found.setdefault(actual, {})[called] = images
    return found


def _flips(folder: LearnerFolder, version: Version) -> Iterator[Flip]:
    """Images that one of the champion of then and the version has right and the other wrong, of the
    classes that both know, as far as both answers and the image are kept.
    """
    number = version["judgement"]["champion"]
    if not number:
        return
    champion = read_version(folder, number)
    context = context_in(folder, config_of(version))
    ours = answers_of(version, context)
    theirs = answers_of(champion, context)
    known = {*known_classes(champion["stage"])} & {*known_classes(version["stage"])}
    same = {test["batch"]: test["kept"]["labels"] for test in champion["tests"]}
    usable = [
        test
        for test in version["tests"]
        if test["kept"]["images"] is not None
        and same.get(test["batch"]) == test["kept"]["labels"]
        and test["batch"] in ours
        and test["batch"] in theirs
    ]
    if not usable:
        raise ConfigError(["no test image is kept that both versions have answered"])
    for test in usable:
        assert test["kept"]["images"] is not None
        images = folder.store.load(test["kept"]["images"])["images"]
        mine, other = ours[test["batch"]], theirs[test["batch"]]
        for image, actual, before, now in zip(
            images, mine.actual, other.predicted, mine.predicted, strict=True
        ):
            if actual in known and (before == actual) != (now == actual):
                png = thumbnail(sheet(image.permute(1, 2, 0).numpy()))
                yield {"actual": actual, "before": before, "now": now, "png": png}
