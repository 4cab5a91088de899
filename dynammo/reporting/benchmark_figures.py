"""The figures of a grid's report: one message each, said in its title.

A band or whisker is one standard deviation over the seeds to either side of the mean. Colours are
those of Okabe and Ito, told apart by the colour-blind; marker and dashes repeat what colour says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dynammo.evaluation.metrics import task_forgetting
from dynammo.evaluation.significance import spread as over_seeds
from dynammo.methods import METHODS
from dynammo.reporting.figures import (
    MOST_NAMED,
    SMALL,
    TEXT,
    WIDTH,
    dress,
    shorten,
    significant,
    spread,
    write_values,
)

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#595959")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
_DASHES = ("-", "--", ":", "-.")
MOST_STYLED = 8  # with more columns, or two of one colour, looks come from the cycle above
MOST_BANDS = 5  # with more columns only those that the titles are about have a band
_LINE = 0.2  # inches from one label to the next
_BINS = 10  # of a reliability diagram: a few hundred images fill no more

Stage = Mapping[str, Any]


class Look(NamedTuple):
    """How a column is drawn."""

    colour: str
    marker: str
    dashes: str


class SetResults(NamedTuple):
    """What a data set's cells have come to: column -> seed -> `summary` and `stages`."""

    name: str
    columns: Mapping[str, Mapping[int, Mapping[str, Any]]]
    looks: Mapping[str, Look]
    reference: str

    @property
    def focus(self) -> str:
        """The column that titles are about: merged where there is one."""
        others = [column for column in self.columns if column != self.reference]
        return "merged" if "merged" in self.columns else (others or list(self.columns))[0]

    def summary(self, column: str, key: str) -> list[float | None]:
        """A summary value of each seed."""
        return [run["summary"][key] for run in self.columns[column].values()]

    def stages(self, column: str, key: str) -> list[list[float | None]]:
        """A value of each stage, a list a seed."""
        return [[s[key] for s in run["stages"]] for run in self.columns[column].values()]

    def mean(self, column: str, key: str) -> float | None:
        """Mean of a summary value over the seeds."""
        return over_seeds(self.summary(column, key)).mean


def looks(columns: Mapping[str, str]) -> dict[str, Look]:
    """Column -> look, given column -> method: the method's own, or of a fixed cycle if many."""
    styles = {
        column: METHODS[method].about.style
        for column, method in columns.items()
        if method in METHODS  # another program's is not
    }
    if len(styles) == len(columns) <= MOST_STYLED and len(
        {own.colour for own in styles.values()}
    ) == len(columns):
        return {column: Look(style.colour, style.marker, "-") for column, style in styles.items()}
    return {
        column: Look(
            _COLOURS[i % len(_COLOURS)],
            _MARKERS[i % len(_MARKERS)],
            _DASHES[i // len(_COLOURS) % len(_DASHES)],
        )
        for i, column in enumerate(columns)
    }


def curves(results: SetResults, metric: str) -> Figure:
    """Accuracy or mean class recall on all classes seen, after each task."""
    what = {
        "accuracy": "gets {} % of all images right",
        "mean_class_recall": "finds {} % of a class",
    }
    best, value = _best(results, f"last_{metric}", max)
    title = f"{results.name}: after the last task, {best} {what[metric].format(_points(value))}"
    if best != results.focus:
        own = results.mean(results.focus, f"last_{metric}")
        title += f", {results.focus} {_points(own)} %"
    unit = {
        "accuracy": "test images of seen classes right, %",
        "mean_class_recall": "mean class recall: share found of the average class, %",
    }
    return _curves(results, metric, title, unit[metric])


def open_set(results: SetResults, metric: str) -> Figure | None:
    """How well images of classes that are yet to come are told from those seen, by task."""
    if metric == "open_set_auroc":
        best, value = _best_stage_mean(results, metric, max)
        what, unit = "best", "AUROC of seen against unseen classes, %; 50 is guessing"
    else:
        best, value = _best_stage_mean(results, metric, min)
        what, unit = "fewest", "unseen let through where 95 % of the seen are, %; lower is better"
    if value is None:
        return None
    verb = "tells unseen classes apart" if what == "best" else "lets the"
    ending = (
        f"{verb} best ({_points(value)} %)"
        if what == "best"
        else (f"{verb} fewest unseen images through ({_points(value)} %)")
    )
    return _curves(results, metric, f"{results.name}: on average {best} {ending}", unit)


def accuracy_against_cost(results: SetResults) -> Figure:
    """Mean class recall after the last task against GMACs an image: up and left is better."""
    names = [name for name in results.columns if results.mean(name, "gmacs") is not None]
    figure, axes = _figure(max(4.8, 2.3 + _LINE * 1.15 * len(names)))
    focus, other = results.focus, results.reference
    if focus == other:
        best = _best(results, "last_mean_class_recall", max)[0]
        other = best if best in names else focus  # another program's cost is not known
    ours, theirs = (results.mean(column, "last_mean_class_recall") for column in (focus, other))
    costs = [results.mean(column, "gmacs") for column in (focus, other)]
    assert ours is not None and theirs is not None and costs[0] is not None and costs[1] is not None
    if focus == other:
        title = f"{results.name}: {focus} finds {_points(ours)} % at {significant(costs[0])} GMACs"
    else:
        gap = 100 * (ours - theirs)
        title = (
            f"{results.name}: {focus} costs {100 * costs[0] / costs[1]:.0f} % of {other} and ends "
            f"{abs(gap):.1f} points {'higher' if gap >= 0 else 'lower'}"
        )
    _dress(figure, axes, title, "mean class recall after the last task, %")
    ends = []
    for column in names:
        x = results.mean(column, "gmacs")
        y, deviation, _ = over_seeds(results.summary(column, "last_mean_class_recall"))
        assert x is not None and y is not None
        look = results.looks[column]
        error = None if deviation is None else 100 * deviation
        axes.errorbar(
            x, 100 * y, error, fmt=look.marker, color=look.colour, ms=10, capsize=3, elinewidth=1.2
        )
        ends.append((f"{column} {_points(y)}, {significant(x)} GMACs", x, 100 * y, look.colour))
    axes.set_xlim(0, 1.06 * max(x for _, x, _, _ in ends))
    _limit(axes, [y for _, _, y, _ in ends], 4)
    _label(axes, ends)
    axes.set_xlabel("billion multiply-adds (GMACs) to classify one image", fontsize=TEXT)
    return figure


def forgetting(results: SetResults) -> Figure | None:
    """What old tasks have lost at the end, and what updates broke."""
    best, value = _best(results, "forgetting_accuracy", min)
    if value is None:
        return None
    title = f"{results.name}: {best} forgets least ({_points(value)} points)"
    panels = {
        "forgetting_accuracy": "accuracy that earlier tasks have lost at the end, points",
        "average_negative_flips": "old images that an update turns from right to wrong, %",
    }
    return _dots(results, title, panels, results.summary)


def calibration(results: SetResults) -> Figure:
    """Expected calibration error after the last task."""

    def last(column: str, key: str) -> list[float | None]:
        return [run["stages"][-1][key] for run in results.columns[column].values()]

    means = {column: over_seeds(last(column, "ece")).mean for column in results.columns}
    best = min((c for c in means if means[c] is not None), key=lambda c: means[c] or 0.0)
    title = f"{results.name}: {best} comes closest to being as often right as it says"
    unit = {"ece": "expected calibration error after the last task, points; lower is better"}
    return _dots(results, title, unit, last)


def reliability(
    results: SetResults, right_by_confidence: Mapping[str, tuple[Any, Any]]
) -> Figure | None:
    """Small multiples: share right against stated confidence, all seeds' test images together.

    Args:
        results: the data set's.
        right_by_confidence: column -> confidences (N,) in [0, 1] and whether right (N,) bool.
    """
    shown = [column for column in results.columns if column in right_by_confidence]
    if not shown:
        return None
    title = f"{results.name}: below the diagonal a method is surer than it may be"
    figure, panels = _panels(len(shown), title, 1.9)
    edges = np.linspace(0, 1, _BINS + 1)
    for axes, column in zip(panels, shown, strict=True):
        confidence, right = right_by_confidence[column]
        bins = np.clip(np.searchsorted(edges[1:-1], confidence, side="left"), 0, _BINS - 1)
        count = np.bincount(bins, minlength=_BINS)
        used = count > 0
        x = np.bincount(bins, confidence, _BINS)[used] / count[used]
        y = np.bincount(bins, right.astype(float), _BINS)[used] / count[used]
        axes.plot([0, 100], [0, 100], color="#999999", lw=1)
        look = results.looks[column]
        axes.plot(100 * x, 100 * y, color=look.colour, lw=1.5, zorder=2)
        sizes = 12 + 120 * count[used] / count.max()
        axes.scatter(100 * x, 100 * y, sizes, color=look.colour, zorder=3)
        _small(axes, column, look.colour)
        axes.set(xlim=(0, 103), ylim=(0, 103), xticks=[0, 50, 100], yticks=[0, 50, 100], aspect=1)
    figure.supxlabel("how sure it says it is, %; large dots hold many images", fontsize=TEXT)
    figure.supylabel("right, %", fontsize=TEXT)
    return figure


def accuracy_matrices(results: SetResults) -> Figure:
    """Small multiples: accuracy on each task (across) after each task (down), mean of seeds."""
    columns = list(results.columns)
    tasks = max(len(run["stages"]) for runs in results.columns.values() for run in runs.values())
    title = f"{results.name}: what is left of each task (dark: right, white: forgotten)"
    figure, panels = _panels(len(columns), title, 2.2)
    for axes, column in zip(panels, columns, strict=True):
        values = np.full((len(results.columns[column]), tasks, tasks), np.nan)
        for layer, run in zip(values, results.columns[column].values(), strict=True):
            for i, stage in enumerate(run["stages"]):
                for j, value in enumerate(stage["task_accuracy"]):
                    layer[i, j] = np.nan if value is None else 100 * value
        mean = _nan_mean(values)
        axes.imshow(mean, cmap="Blues", vmin=0, vmax=100)
        if tasks <= 5:
            write_values(axes, mean, 9)
        _small(axes, column, results.looks[column].colour)
        ticks = np.arange(0, tasks, 1 + (tasks - 1) // 5)
        axes.set_xticks(ticks, [str(tick + 1) for tick in ticks])
        axes.set_yticks(ticks, [str(tick + 1) for tick in ticks])
    figure.supxlabel("test images of task", fontsize=TEXT)
    figure.supylabel("after learning task", fontsize=TEXT)
    return figure


def class_recall(results: SetResults) -> Figure:
    """Heat map of each class's recall after the last task, the hardest class first."""
    table = class_table(results)
    hardest = table[0]
    every = 1 + (len(table) - 1) // MOST_NAMED
    values = np.array(
        [[np.nan if v is None else 100 * v for v in recall.values()] for _, recall, _ in table]
    )
    height = 2.6 + min(7.5, 0.3 * len(table))
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    title = f"{results.name}: {shorten(hardest[0])} is the hardest class"
    _dress(
        figure,
        axes,
        title,
        "share of the class's images found after the last task, %",
        grid=False,
    )
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02).ax.tick_params(labelsize=SMALL)
    if len(table) <= 24:
        for (row, place), value in np.ndenumerate(values):
            if not np.isnan(value):
                colour = "white" if value > 55 else "black"
                axes.text(
                    place, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=9
                )
    rows = np.arange(0, len(table), every)
    names = [shorten(table[row][0]) for row in rows]
    axes.set_yticks(rows, names, fontsize=SMALL if len(rows) <= 24 else 7, parse_math=False)
    angle: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    many = values.shape[1] > 5
    axes.set_xticks(
        range(values.shape[1]), list(results.columns), fontsize=SMALL, **(angle if many else {})
    )
    return figure


def differences(results: SetResults, metric: str = "last_mean_class_recall") -> Figure | None:
    """Each column minus the reference on the same seed: a dot a seed, a bar at the mean."""
    base = results.columns[results.reference]
    gaps: dict[str, list[float]] = {}
    for column, runs in results.columns.items():
        if column != results.reference:
            pairs = [
                (run["summary"][metric], base[seed]["summary"][metric])
                for seed, run in runs.items()
                if seed in base
            ]
            gaps[column] = [100 * (a - b) for a, b in pairs if a is not None and b is not None]
    gaps = {column: values for column, values in gaps.items() if values}
    if not gaps:
        return None
    above = sum(min(values) > 0 for values in gaps.values())
    below = sum(max(values) < 0 for values in gaps.values())
    title = (
        f"{results.name}: {above} of {len(gaps)} above {results.reference} in every seed, "
        f"{below} below in every seed"
    )
    figure, axes = _figure(2.2 + 0.3 * len(gaps))
    _dress(figure, axes, title, "points of mean class recall after the last task", grid=False)
    order = sorted(gaps, key=lambda column: float(np.mean(gaps[column])))
    for row, column in enumerate(order):
        look = results.looks[column]
        axes.plot(
            gaps[column], [row] * len(gaps[column]), look.marker, color=look.colour, alpha=0.6
        )
        axes.plot([np.mean(gaps[column])] * 2, [row - 0.32, row + 0.32], color=look.colour, lw=3)
    axes.axvline(0, color="black", lw=1)
    axes.set_yticks(range(len(order)), order, fontsize=SMALL)
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.grid(axis="x", color="#DDDDDD", lw=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(
        f"worse than {results.reference} | better; a mark a seed, a bar the mean", fontsize=TEXT
    )
    return figure


def class_table(
    results: SetResults,
) -> list[tuple[str, dict[str, float | None], int]]:
    """Class, column -> its mean recall after the last task, test images; hardest class first."""
    names: dict[str, int] = {}
    for runs in results.columns.values():
        for run in runs.values():
            for name, values in run["stages"][-1]["per_class"].items():
                names[name] = values["support"]
    rows = []
    for name, support in names.items():
        recall = {
            column: over_seeds(
                [
                    run["stages"][-1]["per_class"][name]["recall"]
                    for run in runs.values()
                    if name in run["stages"][-1]["per_class"]
                ]
            ).mean
            for column, runs in results.columns.items()
        }
        rows.append((name, recall, support))

    def ease(row: tuple[str, dict[str, float | None], int]) -> float:
        return over_seeds(list(row[1].values())).mean or (0.0 if row[2] else 2.0)

    return sorted(rows, key=ease)


def forgetting_by_task(results: SetResults, column: str) -> list[float | None]:
    """What each task but the last has lost at the end, mean of seeds."""
    drops = [
        task_forgetting([stage["task_accuracy"] for stage in run["stages"]])
        for run in results.columns[column].values()
    ]
    return [over_seeds(of_task).mean for of_task in zip(*drops, strict=True)]


def _curves(results: SetResults, metric: str, title: str, unit: str) -> Figure:
    figure, axes = _figure(max(4.9, 2.3 + _LINE * 1.15 * len(results.columns)))
    _dress(figure, axes, title, unit)
    ends, reach = [], []
    for column in results.columns:
        look = results.looks[column]
        rows = results.stages(column, metric)
        values = [over_seeds(of_stage) for of_stage in zip(*rows, strict=True)]
        points = [
            (i, 100 * value.mean, 100 * (value.deviation or 0))
            for i, value in enumerate(values, start=1)
            if value.mean is not None
        ]
        if not points:
            continue
        x, mean, deviation = (np.array(side, dtype=float) for side in zip(*points, strict=True))
        told = column in (results.focus, results.reference)
        if told or len(results.columns) <= MOST_BANDS:
            low, high = mean - deviation, mean + deviation
            axes.fill_between(x, low, high, color=look.colour, alpha=0.12, lw=0)
        axes.plot(
            x,
            mean,
            look.dashes,
            color=look.colour,
            marker=look.marker,
            ms=5.5,
            lw=3 if told else 1.8,
            alpha=0.9,
        )
        last = values[int(x[-1]) - 1]
        text = f"{column} {_points(last.mean)}"
        text += "" if last.deviation is None else f" ± {_points(last.deviation)}"
        ends.append((text, float(x[-1]), float(mean[-1]), look.colour))
        reach += [*(mean - deviation), *(mean + deviation)]
    _limit(axes, reach, 2)
    _label(axes, ends)
    run = next(iter(next(iter(results.columns.values())).values()))
    counts = [len(stage["classes"]) for stage in run["stages"]]
    every = 1 + (len(counts) - 1) // 12
    numbers = range(1, len(counts) + 1)[::every]
    axes.set_xticks(numbers, [f"{number}\n{counts[number - 1]}" for number in numbers])
    axes.set_xlabel("tasks seen, and below: classes seen", fontsize=TEXT)
    return figure


def _dots(
    results: SetResults,
    title: str,
    panels: Mapping[str, str],
    values: Callable[[str, str], list[float | None]],
) -> Figure:
    """A row a column, a panel a metric: the mean, its deviation, and its number."""
    first = next(iter(panels))
    means = {column: over_seeds(values(column, first)).mean for column in results.columns}
    order = sorted(means, key=lambda column: (means[column] is None, means[column]), reverse=True)
    rows = 0.9 + 0.28 * len(order)
    figure = Figure(figsize=(WIDTH, 0.6 + (rows + 0.5) * len(panels)), layout="constrained")
    _title(figure, title)
    for axes, (key, unit) in zip(
        figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels.items(), strict=True
    ):
        axes.set_title(unit, fontsize=SMALL + 1, color="#404040", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=SMALL)
        for row, column in enumerate(order):
            mean, deviation, _ = over_seeds(values(column, key))
            if mean is None:
                continue
            look = results.looks[column]
            axes.barh(row, 100 * mean, 0.62, color=look.colour, alpha=0.85)
            ends = 100 * (mean + (deviation or 0.0))
            if deviation is not None:
                axes.errorbar(100 * mean, row, xerr=100 * deviation, color="black", capsize=2, lw=1)
            axes.annotate(
                _points(mean),
                (max(ends, 0.0), row),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=SMALL,
            )
        axes.axvline(0, color="black", lw=1)
        axes.margins(x=0.12)
        axes.set_yticks(range(len(order)), order)
        axes.set_ylim(-0.6, len(order) - 0.4)
    return figure


def _title(figure: Figure, title: str) -> None:
    figure.suptitle(fill(title, 62), fontsize=TEXT + 1, fontweight="bold", x=0.01, ha="left")


def _dress(figure: Figure, axes: Axes, title: str, unit: str, grid: bool = True) -> None:
    """The message over the whole figure, the unit over the axes, two spines, a light grid."""
    _title(figure, title)
    dress(axes, "", unit, grid)
    axes.set_title("", loc="left", pad=18)


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _panels(count: int, title: str, side: float) -> tuple[Figure, list[Axes]]:
    """Small multiples, four in a row."""
    across = min(4, count)
    down = -(-count // across)
    figure = Figure(figsize=(WIDTH, 0.9 + side * down), layout="constrained")
    _title(figure, title)
    all_axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in all_axes[count:]:
        axes.set_axis_off()
    return figure, all_axes[:count]


def _small(axes: Axes, title: str, colour: str) -> None:
    axes.set_title(shorten(title, 20), fontsize=SMALL, fontweight="bold", color=colour)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _limit(axes: Axes, values: Sequence[float], margin: float) -> None:
    """As much of 0 to 100 as is used."""
    low, high = min(values), max(values)
    margin = max(margin, 0.04 * (high - low))
    axes.set_ylim(max(0.0, low - margin) if low >= 0 else low - margin, high + margin)


def _label(axes: Axes, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Texts right of the axes, none over another, each tied to its (x, y) by a thin line."""
    low, high = axes.get_ylim()
    figure = axes.get_figure(root=True)
    assert figure is not None
    inches = figure.get_figheight() - 2.1  # less title and ticks
    gap = (high - low) * _LINE / inches
    heights = np.array(spread([y for _, _, y, _ in ends], gap))
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(ends))
    # Not over the title or the ticks; the bounds rise by a gap a label, so labels stay apart.
    heights[order] = np.maximum(heights[order], low + steps)
    heights[order] = np.minimum(heights[order], high - steps[::-1])
    for (text, x, y, colour), height in zip(ends, heights, strict=True):
        axes.annotate(
            text,
            (x, y),
            xytext=(1.03, height),
            textcoords=("axes fraction", "data"),
            va="center",
            color=colour,
            fontsize=SMALL,
            fontweight="bold",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.6, "shrinkB": 4},
        )


def _best(results: SetResults, key: str, choose: Callable[..., str]) -> tuple[str, float | None]:
    means = {column: results.mean(column, key) for column in results.columns}
    return _chosen(means, choose)


def _best_stage_mean(
    results: SetResults, key: str, choose: Callable[..., str]
) -> tuple[str, float | None]:
    means = {column: stage_mean(results, column, key).mean for column in results.columns}
    return _chosen(means, choose)


def stage_mean(results: SetResults, column: str, key: str) -> Any:
    """Mean over the stages that have the metric, of each seed; then over the seeds."""
    return over_seeds([over_seeds(row).mean for row in results.stages(column, key)])


def _chosen(
    means: Mapping[str, float | None], choose: Callable[..., str]
) -> tuple[str, float | None]:
    present = {column: mean for column, mean in means.items() if mean is not None}
    if not present:
        return next(iter(means)), None
    best = choose(present, key=present.__getitem__)
    return best, present[best]


def _nan_mean(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mean over the first axis of what is there; NaN, without a warning, where nothing is."""
    there = ~np.isnan(values)
    count = there.sum(axis=0)
    total = np.where(there, values, 0).sum(axis=0)
    mean = np.full(total.shape, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
