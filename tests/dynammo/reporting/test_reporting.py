"""The report says what the numbers say, in files that need nothing else."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynammo.errors import ConfigError
from dynammo.evaluation.metrics import Predictions, evaluate_stage, summarise
from dynammo.methods import METHODS
from dynammo.reporting import figures
from dynammo.reporting.report import (
    advice,
    comparison_table,
    headline,
    markdown_table,
    significant,
    write_report,
)

NASTY = ["<b>", "a & b", 'say "hi"', "100 % $x^2$", "a|b, c"]


def synthetic_results(
    tasks: Sequence[Sequence[str]],
    variants: Sequence[str] = ("merged", "unmerged", "frozen"),
    images_per_class: int = 6,
) -> dict[str, Any]:
    """A results document made of random predictions, as the evaluation flow would write it."""
    random = np.random.default_rng(0)
    total = sum(len(task) for task in tasks)
    targets = np.repeat(np.arange(total), images_per_class)
    document: dict[str, Any] = {}
    for place, variant in enumerate(variants):
        stages, previous = [], None
        noise = random.gumbel(size=(len(targets), total))
        for stage in range(1, len(tasks) + 1):
            seen = sum(len(task) for task in tasks[:stage])
            skill = 2.5 + 0.8 * np.array([0.2, 1.0, -0.8][place]) - 1.2 * stage / len(tasks)
            fresh = random.gumbel(size=noise.shape)
            logits = 0.8 * noise + 0.5 * fresh + 1.4 * skill * np.eye(total)[targets]
            scores = np.exp(logits[:, :seen])
            scores /= scores.sum(axis=1, keepdims=True)
            now = Predictions(
                targets, scores.argmax(axis=1), scores, scores.max(axis=1), logits.max(axis=1)
            )
            cost = {"merged": 2.61, "unmerged": 2.51 * stage, "frozen": 1.81}[variant]
            size = {"merged": 12.8e6, "unmerged": 11.2e6 + 1.6e6 * stage, "frozen": 11.2e6}
            sizes = {"gmacs": cost, "parameters": int(size[variant])}
            stages.append(evaluate_stage(now, tasks, stage, previous) | sizes)
            previous = now
        document[variant] = {"summary": summarise(stages) | sizes, "stages": stages}
    counts = [len(task) * images_per_class for task in tasks]
    return {
        "name": "skin8",
        "created_by": {"dynammo": "0.1.0", "torch": "2.13.0"},
        "data": {
            "name": "skin8",
            "hash": "sha256:" + "ab" * 32,
            "source": "csv",
            "path": "data/skin8/manifest.csv",
            "train_images": 5 * sum(counts),
            "test_images": sum(counts),
        },
        "seed": 1,
        "config": {
            "seed": 1,
            "adapter": {"name": "conv", "options": {}},
            "methods": ["merged", "unmerged"],
        },
        "tasks": [
            {"number": i, "classes": list(task), "train_images": 5 * n, "test_images": n}
            for i, (task, n) in enumerate(zip(tasks, counts, strict=True), start=1)
        ],
        "variants": document,
        "gate": {
            "passed": False,
            "checks": [
                {"name": "min_last_recall", "passed": True, "detail": "0.62 is at least 0.5"},
                {"name": "max_gap_to_unmerged", "passed": False, "detail": "0.08 is above <0.05>"},
            ],
        },
    }


@pytest.fixture(scope="module", autouse=True)
def coarse_pictures() -> Iterator[None]:
    """Few dots an inch: nobody looks at these, and they render faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 40)
        yield


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return synthetic_results([NASTY[:2], NASTY[2:]])


@pytest.fixture(scope="module")
def report(results: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(results, tmp_path_factory.mktemp("report") / "deep")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_report_is_self_contained(report: Path) -> None:
    html = report.read_text(encoding="utf-8")
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", html)
    assert links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    without_pictures = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    for outside in ("http://", "https://", "url(", "@import", "<script", "<link"):
        assert outside not in without_pictures


def test_report_names_every_class_escaped(report: Path, results: dict[str, Any]) -> None:
    html = report.read_text(encoding="utf-8")
    for name in NASTY:
        assert escape(name).replace("&quot;", "&#34;") in html
    assert "<b>" not in html
    assert "&lt;0.05&gt;" in html


def test_report_says_how_it_was_made(report: Path, results: dict[str, Any]) -> None:
    html = report.read_text(encoding="utf-8")
    assert results["data"]["hash"] in html
    assert "adapter.name" in html
    assert "2.13.0" in html
    assert "max_gap_to_unmerged" in html
    assert "nan" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", html).lower().split()


def test_report_has_no_gate_when_there_was_none(results: dict[str, Any], tmp_path: Path) -> None:
    merged = {"merged": results["variants"]["merged"]}
    html = write_report(results | {"gate": None, "variants": merged}, tmp_path).read_text("utf-8")
    assert "No quality gate was applied" in html


def test_same_results_give_the_same_bytes(
    report: Path, results: dict[str, Any], tmp_path: Path
) -> None:
    again = write_report(results, tmp_path)
    first = {p.relative_to(report.parent): p for p in report.parent.rglob("*") if p.is_file()}
    second = {p.relative_to(again.parent): p for p in again.parent.rglob("*") if p.is_file()}
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].read_bytes() == second[name].read_bytes(), name


def test_files_beside_the_report(report: Path) -> None:
    names = {str(p.relative_to(report.parent)) for p in report.parent.rglob("*") if p.is_file()}
    of_variants = {
        f"figures/{kind}_{variant}.png"
        for kind in ("accuracy_matrix", "confusion")
        for variant in ("merged", "unmerged", "frozen")
    }
    curves = {"accuracy_curves", "forgetting", "cost", "accuracy_against_cost"}
    tables = {"report.html", "curves.csv", "per_class.csv", "confusion.csv", "table.md"}
    assert names == of_variants | {f"figures/{name}.png" for name in curves} | tables


def test_curves_csv(report: Path, results: dict[str, Any]) -> None:
    rows = read_csv(report.with_name("curves.csv"))
    header = report.with_name("curves.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == (
        "variant,task,classes_seen,accuracy,mean_class_recall,negative_flips,ece,open_set_auroc,"
        "gmacs"
    )
    assert len(rows) == 3 * 2  # variants x tasks
    assert [row["classes_seen"] for row in rows[:2]] == ["2", "5"]
    assert rows[0]["negative_flips"] == ""  # no update before the first task
    assert rows[1]["open_set_auroc"] == ""  # no unknown class after the last
    stages = results["variants"]["merged"]["stages"]
    assert [float(row["accuracy"]) for row in rows[:2]] == [stage["accuracy"] for stage in stages]


def test_class_tables(report: Path, results: dict[str, Any]) -> None:
    rows = read_csv(report.with_name("per_class.csv"))
    assert [row["class"] for row in rows if row["variant"] == "frozen"] == NASTY
    assert [row["task"] for row in rows if row["variant"] == "frozen"] == list("11222")
    counts = read_csv(report.with_name("confusion.csv"))
    assert len(counts) == 3 * 5 * 5
    assert sum(int(row["count"]) for row in counts if row["variant"] == "merged") == 5 * 6


def test_worst_class_comes_first(report: Path, results: dict[str, Any]) -> None:
    html = report.read_text(encoding="utf-8")
    table = html[html.index("Class by class") :]
    places = {name: table.index(f'<th class="name">{escape(name)}') for name in ("<b>", "a & b")}
    recall = {
        name: results["variants"]["merged"]["stages"][-1]["per_class"][name]["recall"]
        for name in places
    }
    assert sorted(places, key=places.__getitem__) == sorted(recall, key=recall.__getitem__)


def variant(accuracy: float, recall: float, gmacs: float) -> dict[str, Any]:
    """Ten test images of two classes, nothing but what the headline and the table read."""
    right = round(10 * accuracy)
    summary = {
        "average_accuracy": 0.91234,
        "last_accuracy": accuracy,
        "average_mean_class_recall": 0.9,
        "last_mean_class_recall": recall,
        "forgetting_accuracy": None,
        "gmacs": gmacs,
        "parameters": 4_210_000,
    }
    stage = {"classes": ["a", "b"], "confusion": [[right, 10 - right], [0, 0]]}
    return {"summary": summary, "stages": [stage]}


def test_headline_is_honest_in_both_directions() -> None:
    better = {"merged": variant(0.8, 0.7, 2.0), "unmerged": variant(0.6, 0.75, 8.0)}
    text = headline({"variants": better})
    assert "After 1 task and 2 classes, the merged model gets 80.0 % of the 10 test images" in text
    # Wilson interval of 8 of 10: 0.490 to 0.943 (standard tables).
    assert "49.0 to 94.3 %" in text
    assert "20.0 points more accuracy and 5.0 points less mean class recall" in text
    assert "at 25 % of the cost (2.00 against 8.00 GMACs an image)" in text
    worse = {"merged": variant(0.6, 0.7, 2.0), "frozen": variant(0.8, 0.7, 1.0)}
    text = headline({"variants": worse})
    assert "20.0 points less accuracy and the same mean class recall, at 200 % of the cost" in text
    assert "Compared" not in headline({"variants": {"merged": better["merged"]}})


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (0.001, 0.03, None),
        (-0.004, 0.03, "were not shown to pay here: the interval of merged minus frozen holds 0"),
        (-0.03, -0.001, "do not pay here: the interval of merged minus frozen lies below 0"),
        (None, None, None),  # two test images of a group
    ],
)
def test_whether_adapters_pay_is_said_with_an_interval(
    low: float | None, high: float | None, says: str | None
) -> None:
    found = {"merged": variant(0.8, 0.7, 2.0), "frozen": variant(0.8, 0.69, 1.0)}
    results = {"variants": found, "paired": {"frozen": {"low": low, "high": high}}}
    assert [says in text for text in advice(results)] == ([] if says is None else [True])
    interval = "" if low is None else f"paired by test image: {100 * low:+.1f} to {100 * high:+.1f}"
    assert interval in headline(results)
    assert ("95 % interval of the difference" in headline(results)) == bool(interval)
    assert advice({"variants": found}) == []  # results of an earlier version hold none
    assert advice({**results, "variants": {"frozen": found["frozen"]}}) == []


def test_frozen_and_lda_come_first_and_unequal_heads_are_named() -> None:
    found = {name: variant(0.8, 0.7, 2.0) for name in ("merged", "unmerged", "frozen", "lda")}
    text = headline({"variants": found, "config": {"head": {"rule": "discriminant"}}})
    places = [text.index(f"the {name} model, it") for name in ("frozen", "lda", "unmerged")]
    assert places == sorted(places)
    assert text.count("remembered images alone") == 1
    fine_tuned = {"variants": found, "config": {"head": {"rule": "fine_tune"}}}
    assert "remembered images alone" not in headline(fine_tuned)


def test_the_headline_without_merged_is_about_the_first_method() -> None:
    text = headline({"variants": {"frozen": variant(0.8, 0.7, 2.0)}})
    assert "the frozen model gets 80.0 % of the 10 test images" in text


def test_results_of_an_unknown_method_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown method 'mine'; known: "):
        headline({"variants": {"mine": variant(0.8, 0.7, 2.0)}})


def test_markdown_table() -> None:
    rows = comparison_table({"variants": {"merged": variant(0.8, 0.7, 2.6131)}})
    assert rows[0]["variant"] == "merged"
    assert rows[0]["average_accuracy"] == 0.91234
    lines = markdown_table(rows).splitlines()
    assert lines[0].startswith("| variant | average accuracy, % | last accuracy, % |")
    assert lines[1].count("---") == 8
    assert lines[2] == "| merged | 91.2 | 80.0 | 90.0 | 70.0 | - | 2.61 | 4.21 |"


def test_numbers_are_never_written_as_powers_of_ten() -> None:
    assert [significant(v) for v in (2.6131, 0.00421, 25.14, 1234.5, None)] == [
        "2.61", "0.00421", "25.1", "1234", "-",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tasks", "variants"),
    [
        ([["a", "b"]], ["merged"]),
        ([["a"], ["b"]], ["merged", "frozen"]),
        ([["a", "b"], ["c"]], ["frozen"]),
        ([[f"{t}-{c}" for c in range(4)] for t in range(13)], ["merged"]),
    ],
    ids=["one task, merged only", "one class a task", "without merged", "many tasks"],
)
def test_every_shape_of_results_renders(
    tasks: list[list[str]], variants: list[str], tmp_path: Path
) -> None:
    html = write_report(synthetic_results(tasks, variants, images_per_class=2), tmp_path)
    assert html.stat().st_size > 10_000


def test_class_without_test_images_renders(results: dict[str, Any], tmp_path: Path) -> None:
    tasks = [["a", "b"], ["c"]]
    targets = np.array([0, 0, 2])  # none of class b
    scores = np.full((3, 3), 1 / 3)
    now = [
        Predictions(targets, np.array([0, 1, 0]), scores[:, :classes], scores[:, 0], scores[:, 0])
        for classes in (2, 3)
    ]
    first = evaluate_stage(now[0], tasks, 1) | {"gmacs": 1.0, "parameters": 1}
    second = evaluate_stage(now[1], tasks, 2, now[0]) | {"gmacs": 1.0, "parameters": 1}
    summary = summarise([first, second]) | {"gmacs": 1.0, "parameters": 1}
    document = synthetic_results(tasks, ["merged"])
    document["variants"] = {"merged": {"summary": summary, "stages": [first, second]}}
    html = write_report(document, tmp_path).read_text(encoding="utf-8")
    table = html[html.index("Class by class") :]
    assert table.index(">c</th>") < table.index(">b</th>")  # untested comes last


def test_figures_read_back_the_numbers(results: dict[str, Any]) -> None:
    stages = results["variants"]["merged"]["stages"]
    left, right = figures.accuracy_curves(results).axes
    heights = [list(np.asarray(line.get_ydata())) for line in (*left.lines[:2], right.lines[1])]
    assert heights == [
        [50, 20],  # chance with 2, then 5 classes
        [100 * stage["accuracy"] for stage in stages],
        [100 * stage["mean_class_recall"] for stage in stages],
    ]
    matrix = figures.accuracy_matrix(stages, "merged").axes[0].images[0].get_array()
    assert matrix is not None
    assert np.ma.getmaskarray(matrix).tolist() == [[False, True], [False, False]]
    confusion = figures.confusion_matrix(stages[-1], "merged").axes[0].images[0].get_array()
    np.testing.assert_allclose(np.asarray(confusion).sum(axis=1), 100)


def test_a_variant_keeps_its_colour(results: dict[str, Any]) -> None:
    drawn = [
        figures.accuracy_curves(results).axes[0].lines[1:],  # after the chance line
        figures.cost_curves(results).axes[0].lines,
        figures.accuracy_against_cost(results).axes[0].lines,
    ]
    expected = [METHODS[name].about.style.colour for name in ("merged", "unmerged", "frozen")]
    for lines in drawn:
        assert [line.get_color() for line in lines] == expected


def test_many_methods_can_be_told_apart(results: dict[str, Any]) -> None:
    one = results["variants"]["merged"]
    many = {"tasks": results["tasks"], "variants": dict.fromkeys(METHODS, one)}
    axes = figures.forgetting_bars(many).axes[0]
    drawn = [
        (line.get_color(), line.get_marker()) for line in axes.lines if line.get_marker() != "None"
    ]
    assert len(set(drawn)) == len(METHODS)
    figure = figures.accuracy_against_cost(many)
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    heights = sorted(
        text.xy[1] for text in axes.texts if text.get_text().startswith(tuple(METHODS))
    )
    assert len(heights) == len(METHODS)
    assert low < heights[0] and heights[-1] < high
    # At least 0.19 inches from line to line.
    assert np.diff(heights).min() / (high - low) * figure.get_figheight() > 0.19


def test_a_figure_is_reproducible(results: dict[str, Any]) -> None:
    content, again = (figures.to_png(figures.cost_curves(results)) for _ in range(2))
    assert content == again
    assert b"tEXt" not in content  # no program name, no date


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([10.0, 50.0], [10, 50]),  # far apart: untouched
        ([50.0, 50.0], [48, 52]),  # on top of each other: moved apart evenly
        ([53.0, 50.0, 90.0], [53.5, 49.5, 90]),  # 3 apart, so half a unit each; order kept
    ],
)
def test_labels_are_moved_apart(heights: list[float], expected: list[float]) -> None:
    assert figures.spread(heights, gap=4) == pytest.approx(expected)
