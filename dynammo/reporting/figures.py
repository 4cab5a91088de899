"""The figures of a report: functions from the results document to a matplotlib `Figure`.

Object-oriented matplotlib only: no pyplot, so no global state and no display. A variant, which is
what a method came to in one run, has the same colour and marker in every figure: its method's
(`dynammo.methods`).
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import isotonic_regression

from dynammo.evaluation.metrics import task_forgetting
from dynammo.methods import METHODS
from dynammo.methods.base import About, Style

WIDTH = 7.2  # inches: narrow, so that the text is still read when scaled down to a phone
DPI = 180  # of the saved file, for sharp text on dense screens
TEXT, SMALL = 12, 10  # points
MOST_NUMBERED = 20  # a matrix with more rows shows colours only
MOST_BARS = 5  # with more variants, forgetting is drawn as markers
MOST_NAMED = 40  # a matrix with more rows names every k-th class only


def variants(results: Mapping[str, Any]) -> list[str]:
    """The variants that the results hold, always in the same order: that of `METHODS`.

    Raises:
        ConfigError: one is of a method that is not registered here.
    """
    order = list(METHODS)
    for name in results["variants"]:
        about(name)
    return sorted(results["variants"], key=order.index)


def about(variant: str) -> About:
    """What a variant's method says of itself.

    Raises:
        ConfigError: it is not registered.
    """
    found: About = METHODS[variant].about
    return found


def style(variant: str) -> Style:
    """How a variant is drawn."""
    return about(variant).style


def significant(value: float) -> str:
    """2.6131 -> "2.61", 10 -> "10.0"; three significant digits, never a power of ten."""
    decimals = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, decimals)}f}"


def accuracy_curves(results: Mapping[str, Any]) -> Figure:
    """Accuracy and mean class recall on all classes seen, after each task; chance level dotted."""
    figure = Figure(figsize=(WIDTH, 7.4), layout=ConstrainedLayoutEngine(hspace=0.08))
    panels = {
        "accuracy": ("Accuracy", "test images of seen classes right, %"),
        "mean_class_recall": ("Mean class recall", "share found of the average class, %"),
    }
    for axes, (metric, (title, unit)) in zip(figure.subplots(2, 1), panels.items(), strict=True):
        dress(axes, title, unit)
        stages = results["variants"][variants(results)[0]]["stages"]
        counts = [len(stage["classes"]) for stage in stages]
        axes.set_ylim(0, 104)
        axes.plot(_numbers(stages), [100 / count for count in counts], ":.", color="black", lw=1.5)
        ends = {"chance": (100 / counts[-1], "black")}
        for variant in variants(results):
            stages = results["variants"][variant]["stages"]
            values = [100 * stage[metric] for stage in stages]
            _line(axes, variant, stages, values)
            ends[f"{variant} {values[-1]:.1f}"] = (values[-1], style(variant).colour)
        _label_ends(axes, ends)
        _task_axis(axes, counts)
    return figure


def cost_curves(results: Mapping[str, Any]) -> Figure:
    """GMACs to classify one image, after each task."""
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    axes = figure.subplots()
    dress(axes, "Cost of classifying one image", "billion multiply-adds (GMACs)")
    ends = {}
    counts: list[int] = []
    for variant in variants(results):
        stages = results["variants"][variant]["stages"]
        counts = [len(stage["classes"]) for stage in stages]
        values = [stage["gmacs"] for stage in stages]
        _line(axes, variant, stages, values)
        ends[f"{variant} {significant(values[-1])}"] = (values[-1], style(variant).colour)
    axes.set_ylim(0, 1.08 * axes.dataLim.ymax)
    _label_ends(axes, ends)
    _task_axis(axes, counts)
    return figure


def accuracy_against_cost(results: Mapping[str, Any]) -> Figure:
    """Accuracy after the last task against GMACs an image: up and to the left is better."""
    tall = 3.9 * max(1.0, len(results["variants"]) / 16)  # a line of text for each
    figure = Figure(figsize=(WIDTH, tall), layout="constrained")
    axes = figure.subplots()
    dress(axes, "Accuracy after the last task, against cost", "all test images right, %")
    ends = {}
    for variant in variants(results):
        summary = results["variants"][variant]["summary"]
        x, y = summary["gmacs"], 100 * summary["last_accuracy"]
        colour, marker = style(variant)
        axes.plot(x, y, marker, color=colour, ms=12)
        ends[f"{variant} {y:.1f}"] = (x, y, colour)
    axes.set_xlim(0, 1.2 * axes.dataLim.xmax)
    axes.set_ylim(0, 104)
    heights = spread([y for _, y, _ in ends.values()], gap=min(8, 100 / len(ends)))
    lower = max(0.0, max(heights) - 100)  # many labels would stand in the title
    places = [x for x, _, _ in ends.values()]
    for (text, (x, _, colour)), height in zip(ends.items(), heights, strict=True):
        right = max(place for place in places if place - x < 0.08 * max(places))
        axes.annotate(
            text,
            (right, height - lower),  # right of its marker, and of one that is close by
            xytext=(12, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=TEXT,
            fontweight="bold",
        )
    axes.set_xlabel("billion multiply-adds (GMACs) to classify one image", fontsize=TEXT)
    return figure


def forgetting_bars(results: Mapping[str, Any]) -> Figure:
    """For each task but the last: the best earlier accuracy minus the accuracy at the end.

    Bars, or where there are many variants their markers, for bars would share colours.
    """
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    axes = figure.subplots()
    dress(axes, "What each earlier task has lost", "points of accuracy below its best")
    shown = variants(results)
    drops = {
        variant: np.array(
            [np.nan if drop is None else 100 * drop for drop in task_forgetting(matrix)]
        )
        for variant in shown
        for matrix in [[row["task_accuracy"] for row in results["variants"][variant]["stages"]]]
    }
    if all(np.isnan(points).all() for points in drops.values()):
        note = "Forgetting shows from the second task on."
        axes.text(0.5, 0.5, note, fontsize=TEXT, ha="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return figure
    width = 0.8 / len(shown)
    many = len(shown) > MOST_BARS
    for place, (variant, points) in enumerate(drops.items()):
        colour, marker = style(variant)
        x = np.arange(1, len(points) + 1) + (place - (len(shown) - 1) / 2) * width
        if many:
            axes.plot(x, points, marker, color=colour, ms=8, label=variant)
            continue
        bars = axes.bar(x, points, 0.92 * width, color=colour, label=variant)
        if len(points) * len(shown) <= MOST_NUMBERED:
            labels = ["" if np.isnan(value) else f"{value:.0f}" for value in points]
            axes.bar_label(bars, labels, padding=2, fontsize=SMALL)
    axes.axhline(0, color="black", lw=1)
    axes.margins(y=0.12)
    axes.set_xlabel("task, in order of arrival", fontsize=TEXT)
    tasks = len(results["tasks"]) - 1
    axes.set_xticks(range(1, tasks + 1)[:: 1 + (tasks - 1) // 20])
    middle, half = (tasks + 1) / 2, max(tasks, 3) / 2 + 0.1
    axes.set_xlim(middle - half, middle + half)
    columns = min(len(shown), MOST_BARS)
    figure.legend(loc="outside lower center", ncols=columns, fontsize=TEXT, frameon=False)
    return figure


def accuracy_matrix(stages: Sequence[Mapping[str, Any]], variant: str) -> Figure:
    """Heat map of a[i][j]: the accuracy on the test images of task j after learning task i."""
    count = len(stages)
    values = np.full((count, count), np.nan)
    for i, stage in enumerate(stages):
        values[i, : i + 1] = [np.nan if v is None else 100 * v for v in stage["task_accuracy"]]
    axes, figure = _heat_map(values, height=min(6.6, 3.0 + 0.4 * count))
    dress(axes, f"{variant}: accuracy task by task", "test images of the task right, %", grid=False)
    axes.set_xlabel("test images of task", fontsize=TEXT)
    axes.set_ylabel("after learning task", fontsize=TEXT)
    every = 1 + (count - 1) // 20
    ticks = np.arange(0, count, every)
    axes.set_xticks(ticks, [str(tick + 1) for tick in ticks])
    axes.set_yticks(ticks, [str(tick + 1) for tick in ticks])
    return figure


def confusion_matrix(stage: Mapping[str, Any], variant: str) -> Figure:
    """Heat map of predicted against true class, in % of the true class's test images."""
    counts = np.array(stage["confusion"], dtype=float)
    support = counts.sum(axis=1, keepdims=True)
    values = np.divide(100 * counts, support, out=np.full_like(counts, np.nan), where=support > 0)
    axes, figure = _heat_map(values, height=7.2 if len(counts) > 10 else 6.4)
    dress(
        axes,
        f"{variant}: which class is taken for which",
        "% of the true class's test images",
        grid=False,
    )
    every = 1 + (len(counts) - 1) // MOST_NAMED
    note = f" (every {_ordinal(every)} named)" if every > 1 else ""
    axes.set_xlabel(f"predicted class{note}", fontsize=TEXT)
    axes.set_ylabel(f"true class{note}", fontsize=TEXT)
    ticks = np.arange(0, len(counts), every)
    names = [shorten(name) for name in stage["classes"][::every]]
    size = SMALL if len(ticks) <= 20 else 8
    axes.set_xticks(ticks, names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG; the same figure gives the same bytes (no date, no program name)."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def thumbnail(picture: NDArray[np.uint8], side: int = 112) -> bytes:
    """A picture (S, S, 3) as a PNG of at most `side` pixels a side."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side))
    buffer = BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """A PNG as the address of an image in a page that holds it."""
    return f"data:image/png;base64,{b64encode(png).decode()}"


def _numbers(stages: Sequence[Mapping[str, Any]]) -> list[int]:
    return [stage["task"] for stage in stages]


def dress(axes: Axes, title: str, unit: str, grid: bool = True) -> None:
    """Two spines, a light grid, the title in bold and below it the unit of what is shown."""
    axes.set_title(title, fontsize=TEXT + 1, fontweight="bold", loc="left", pad=24)
    axes.annotate(
        unit,
        (0, 1),
        xytext=(0, 8),
        textcoords="offset points",
        xycoords="axes fraction",
        fontsize=SMALL + 1,
        color="#404040",
    )
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(axis="y", color="#DDDDDD", lw=0.8)
        axes.set_axisbelow(True)


def _line(
    axes: Axes, variant: str, stages: Sequence[Mapping[str, Any]], values: Sequence[float]
) -> None:
    colour, marker = style(variant)
    axes.plot(_numbers(stages), values, color=colour, marker=marker, ms=6, lw=2.2)


def _task_axis(axes: Axes, counts: Sequence[int]) -> None:
    """Ticks "task / classes seen", thinned where there are many tasks."""
    every = 1 + (len(counts) - 1) // 12
    numbers = range(1, len(counts) + 1)[::every]
    axes.set_xticks(numbers, [f"{number}\n{counts[number - 1]}" for number in numbers])
    axes.set_xlabel("tasks seen, and below: classes seen", fontsize=TEXT)


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float, str]]) -> None:
    """Text right of the axes, each at the height of its line's end or as near as there is room."""
    low, high = axes.get_ylim()
    gap = min(0.085, 1.1 / len(ends)) * (high - low)
    heights = spread([y for y, _ in ends.values()], gap)
    for (text, (_, colour)), height in zip(ends.items(), heights, strict=True):
        axes.annotate(
            text,
            (1, height),
            xytext=(4, 0),
            textcoords="offset points",
            xycoords=("axes fraction", "data"),
            va="center",
            color=colour,
            fontsize=SMALL + 1,
            fontweight="bold",
            annotation_clip=False,
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """The closest heights, in least squares, that keep their order and lie at least `gap` apart."""
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(heights))
    spread = np.empty(len(heights))
    spread[order] = isotonic_regression(np.asarray(heights)[order] - steps).x + steps
    return [float(height) for height in spread]


def _heat_map(values: np.ndarray[Any, Any], height: float) -> tuple[Axes, Figure]:
    """Square cells from white (0 %) to dark blue (100 %), numbered where they are few."""
    figure = Figure(figsize=(WIDTH, height), layout="compressed")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=100)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.ax.tick_params(labelsize=SMALL)
    if len(values) <= MOST_NUMBERED:
        size = TEXT if len(values) <= 10 else 8
        write_values(axes, values, size)
    return axes, figure


def write_values(axes: Axes, values: NDArray[np.float64], size: float) -> None:
    """Write the percentages (rows, columns) of a picture in blues into its cells; not NaN."""
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "white" if value > 55 else "black"
            text = f"{value:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


def shorten(name: str, most: int = 28) -> str:
    """A name cut to at most so many characters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _ordinal(number: int) -> str:
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(number, f"{number}th")
