"""The results of a run as one HTML page, CSV tables, a Markdown table and PNG figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, select_autoescape
from matplotlib.figure import Figure
from scipy.stats import binomtest

from dynammo.checkpoint import write_atomically
from dynammo.heads import HEAD_RULES
from dynammo.reporting import figures
from dynammo.reporting.figures import variants

NOTHING = "-"  # shown where a metric has no value


def percent(value: float | None) -> str:
    """0.625 -> "62.5"; a share as a number of per cent, one decimal."""
    return NOTHING if value is None else f"{100 * value:.1f}"


def significant(value: float | None) -> str:
    """2.6131 -> "2.61"; three significant digits."""
    return NOTHING if value is None else figures.significant(value)


def millions(value: int | None) -> str:
    """4210000 -> "4.21"; three significant digits."""
    return significant(value and value / 1e6)


# Key in a variant's summary -> (heading, how the value is written).
COLUMNS = {
    "average_accuracy": ("average accuracy, %", percent),
    "last_accuracy": ("last accuracy, %", percent),
    "average_mean_class_recall": ("average mean class recall, %", percent),
    "last_mean_class_recall": ("last mean class recall, %", percent),
    "forgetting_accuracy": ("forgetting of accuracy, points", percent),
    "gmacs": ("GMACs an image", significant),
    "parameters": ("parameters, million", millions),
}


def comparison_table(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a variant: `variant` and the keys of `COLUMNS`, shares in [0, 1] or `None`."""
    return [
        {"variant": variant}
        | {key: results["variants"][variant]["summary"][key] for key in COLUMNS}
        for variant in variants(results)
    ]


def readable_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The rows of `comparison_table` under their headings, in per cent and readable units."""
    return [
        {"variant": row["variant"]}
        | {heading: write(row[key]) for key, (heading, write) in COLUMNS.items()}
        for row in rows
    ]


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `comparison_table` as a Markdown table."""
    headings = ["variant", *(heading for heading, _ in COLUMNS.values())]
    lines = [headings, ["---", *["---:"] * len(COLUMNS)]]
    lines += [list(row.values()) for row in readable_rows(rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_report(results: Mapping[str, Any], directory: str | Path) -> Path:
    """Write the report and everything in it that another program may want.

    Files: `report.html` (self-contained), `figures/*.png`, `table.md` (the comparison),
    `curves.csv` (one row a variant and stage), `per_class.csv` and `confusion.csv` (the last
    stage). Each is written whole or not at all, and the same results give the same bytes.

    Args:
        results: the results document, as in `results.json`.
        directory: made if missing.

    Returns:
        The path of `report.html`.
    """
    directory = Path(directory)
    pictures = {name: figures.to_png(figure) for name, figure in _figures(results)}
    for name, content in pictures.items():
        write_atomically(directory / "figures" / f"{name}.png", content)
    for name, rows in {
        "curves.csv": _curves(results),
        "per_class.csv": _per_class(results),
        "confusion.csv": _confusions(results),
    }.items():
        write_atomically(directory / name, to_csv(rows))
    write_atomically(directory / "table.md", markdown_table(comparison_table(results)).encode())
    html = directory / "report.html"
    write_atomically(html, _html(results, pictures).encode())
    return html


def lead(results: Mapping[str, Any]) -> str:
    """The variant that the report is about: merged, and without it the first in the order."""
    return variants(results)[0]


def headline(results: Mapping[str, Any]) -> str:
    """What came out, in a few plain sentences computed from the numbers, good or bad."""
    first, *others = variants(results)
    # What the adapters are worth comes first: the same, and then the plainest method, without them.
    others.sort(key=lambda name: (name != "frozen", name != "lda"))
    measured = results["variants"][first]
    summary, last = measured["summary"], measured["stages"][-1]
    right = sum(row[i] for i, row in enumerate(last["confusion"]))
    tested = sum(map(sum, last["confusion"]))
    interval = binomtest(right, tested).proportion_ci(method="wilson")
    tasks, classes = _count(len(measured["stages"]), "task"), _count(len(last["classes"]), "class")
    sentences = [
        f"After {tasks} and {classes}, the {first} model gets {percent(summary['last_accuracy'])} %"
        f" of the {tested} test images right (95 % interval for a test set of this size:"
        f" {percent(interval.low)} to {percent(interval.high)} %) and, averaged over the classes,"
        f" finds {percent(summary['last_mean_class_recall'])} % of a class's images"
        " (mean class recall)."
    ]
    if len(others) <= _MOST_COMPARED:
        sentences += [_compared(first, other, results) for other in others]
    else:
        recall = {
            variant: results["variants"][variant]["summary"]["last_mean_class_recall"]
            for variant in (first, *others)
        }
        best, least = max(recall, key=recall.__getitem__), min(recall, key=recall.__getitem__)
        sentences.append(
            f"Of the {len(recall)} methods measured, {best} has the highest mean class recall at"
            f" the end, {percent(recall[best])} %, and {least} the lowest,"
            f" {percent(recall[least])} %."
        )
    sentences += advice(results)
    sentences.append("This is one run with one seed; another seed gives other numbers.")
    return " ".join(sentences)


def advice(results: Mapping[str, Any]) -> list[str]:
    """Whether it was shown that adapters pay; nothing where it was, or where nobody measured it.

    Where a run asked held-out training images (`merge.trust`) they say it. Else no setting is to be
    changed by it: it comes from the test images.
    """
    if trust := results.get("trust"):
        low, high, gain = (f"{100 * trust[key]:+.1f}" for key in ("low", "high", "difference"))
        how = {1: "in full", 0: "not at all, so that this is the frozen backbone"}
        return [
            f"On {trust['images']} training images held out from the adapters, these add {gain}"
            f" points of mean class recall to the frozen backbone (95 % interval {low} to {high})."
            f" They are trusted {how.get(trust['scale'], 'by half')}."
        ]
    change = results.get("paired", {}).get("frozen")
    if lead(results) != "merged" or change is None or change["low"] is None or change["low"] > 0:
        return []
    what = "do not pay" if change["high"] < 0 else "were not shown to pay"
    return [
        f"Adapters {what} here: the interval of merged minus frozen"
        f" {'lies below' if change['high'] < 0 else 'holds'} 0. The frozen backbone with the same"
        " head (method frozen) is the simpler model."
    ]


_MOST_COMPARED = 3  # with more variants, the headline names the best and the worst
_COMPARED = {"accuracy": "accuracy", "mean_class_recall": "mean class recall"}


def _compared(first: str, other: str, results: Mapping[str, Any]) -> str:
    """One sentence on what sets the first variant apart from another."""
    ours, theirs = (results["variants"][name]["summary"] for name in (first, other))
    gaps = [
        _gap(ours[f"last_{metric}"] - theirs[f"last_{metric}"], words)
        for metric, words in _COMPARED.items()
    ]
    change = results.get("paired", {}).get(other)
    interval = ""
    if change is not None and change["low"] is not None:
        low, high = (f"{100 * change[end]:+.1f}" for end in ("low", "high"))
        interval = (
            f" (95 % interval of the difference, paired by test image: {low} to {high} points)"
        )
    rule = results.get("config", {}).get("head", {}).get("rule")
    unequal = other == "unmerged" and rule in HEAD_RULES
    unequal = unequal and HEAD_RULES[rule].evidence == "statistics"
    sees = (
        "; its heads, the published ones, have seen of other tasks the remembered images alone,"
        " where this head follows from statistics of all training images"
        if unequal
        else ""
    )
    return (
        f"Compared with the {other} model, it has {' and '.join(gaps)}{interval},"
        f" at {100 * ours['gmacs'] / theirs['gmacs']:.0f} % of the cost"
        f" ({significant(ours['gmacs'])} against {significant(theirs['gmacs'])} GMACs an image)"
        f"{sees}."
    )


def _gap(difference: float, what: str) -> str:
    """0.021, "accuracy" -> "2.1 points more accuracy"."""
    points = percent(abs(difference))
    if points == "0.0":
        return f"the same {what}"
    return f"{points} points {'more' if difference > 0 else 'less'} {what}"


def _count(number: int, noun: str) -> str:
    """2, "class" -> "2 classes"."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def _figures(results: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    yield "accuracy_curves", figures.accuracy_curves(results)
    yield "forgetting", figures.forgetting_bars(results)
    yield "cost", figures.cost_curves(results)
    yield "accuracy_against_cost", figures.accuracy_against_cost(results)
    for variant in variants(results):
        stages = results["variants"][variant]["stages"]
        yield f"accuracy_matrix_{variant}", figures.accuracy_matrix(stages, variant)
        yield f"confusion_{variant}", figures.confusion_matrix(stages[-1], variant)


def _stages(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every stage of every variant."""
    for variant in variants(results):
        for stage in results["variants"][variant]["stages"]:
            yield variant, stage


def _last_stages(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for variant in variants(results):
        yield variant, results["variants"][variant]["stages"][-1]


def _curves(results: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    keys = ["accuracy", "mean_class_recall", "negative_flips", "ece", "open_set_auroc", "gmacs"]
    yield ["variant", "task", "classes_seen", *keys]
    for variant, stage in _stages(results):
        yield [variant, stage["task"], len(stage["classes"]), *(stage[key] for key in keys)]


def _per_class(results: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    keys = ["recall", "precision", "auroc", "calibration", "support"]
    task_of = _task_of(results)
    yield ["variant", "task", "class", *keys]
    for variant, stage in _last_stages(results):
        for name, values in stage["per_class"].items():
            # Results written before calibration was measured have none.
            yield [variant, task_of[name], name, *(values.get(key) for key in keys)]


def _confusions(results: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    yield ["variant", "actual", "predicted", "count"]
    for variant, stage in _last_stages(results):
        for actual, row in zip(stage["classes"], stage["confusion"], strict=True):
            for predicted, count in zip(stage["classes"], row, strict=True):
                yield [variant, actual, predicted, count]


def to_csv(rows: Iterable[Sequence[Any]]) -> bytes:
    """UTF-8, a comma between values, nothing where there is no value."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _task_of(results: Mapping[str, Any]) -> dict[str, int]:
    """Class name -> number of the task it arrived in."""
    return {name: task["number"] for task in results["tasks"] for name in task["classes"]}


class _Class(NamedTuple):
    """A row of the report's table of classes; `recall` has one entry a variant."""

    name: str
    task: int
    support: int
    recall: list[float | None]
    precision: float | None
    auroc: float | None
    calibration: float | None
    taken_for: str


def _classes(results: Mapping[str, Any]) -> list[_Class]:
    """The classes after the last task, the one that the lead finds least first, untested last."""
    last = dict(_last_stages(results))
    task_of = _task_of(results)
    stage = last[lead(results)]
    names = stage["classes"]
    rows = []
    for i, (name, counts) in enumerate(zip(names, stage["confusion"], strict=True)):
        own = stage["per_class"][name]
        rows.append(
            _Class(
                name,
                task_of[name],
                own["support"],
                [other["per_class"][name]["recall"] for other in last.values()],
                own["precision"],
                own["auroc"],
                own.get("calibration"),
                _taken_for(i, counts, names),
            )
        )
    return sorted(rows, key=lambda row: (row.recall[0] is None, row.recall[0]))


def _taken_for(own: int, counts: Sequence[int], names: Sequence[str]) -> str:
    """The wrong class that images of class `own` are most often taken for, and how often."""
    wrong = [0 if c == own else count for c, count in enumerate(counts)]
    most = max(wrong)
    return f"{names[wrong.index(most)]} ({most})" if most else NOTHING


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested sections as dotted keys, as they are written on the command line."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def pages_of(folder: Path) -> Environment:
    """The pages of a folder: in HTML values are escaped, and one that is missing is an error."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def template(name: str, **filters: Callable[..., str]) -> Template:
    """A page of this folder, compiled once: a learner writes a report at each step."""
    environment = pages_of(Path(__file__).parent)
    environment.filters.update(percent=percent, significant=significant, **filters)
    return environment.get_template(name)


def _html(results: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    return template("report.html.j2").render(
        results=results,
        headline=headline(results),
        columns=COLUMNS,
        rows=comparison_table(results),
        lead=lead(results),
        meanings={variant: figures.about(variant).meaning for variant in variants(results)},
        variants=variants(results),
        stages=list(_stages(results)),
        classes=_classes(results),
        config=list(_flat(results["config"])),
        pictures={name: figures.data_uri(content) for name, content in pictures.items()},
    )
