"""An image, and beside it where its class is seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from dynammo.data.formats.pictures import Pixels, as_given, sheet
from dynammo.errors import DataError
from dynammo.reporting.figures import SMALL, TEXT

if TYPE_CHECKING:
    from dynammo.deploy.predictor import Predictor
    from dynammo.deploy.similar import Alike, Remembered


def explain(
    predictor: Predictor,
    image: Pixels,
    label: str | None = None,
    remembered: Remembered | None = None,
) -> tuple[Figure, str]:
    """Draw where a class is seen in an image.

    Args:
        predictor: the model.
        image: (H, S, 3) of the network's size.
        label: the class; none: the most probable one.
        remembered: pictures of which the most alike are drawn below.

    Returns:
        The figure, and the class.

    Raises:
        DataError: the model knows no such class.
    """
    from dynammo.deploy.heat_map import heat_map
    from dynammo.deploy.similar import most_alike

    (answer,) = predictor.predict([as_given(image, predictor.form)])
    shown = label or answer.label
    if shown not in predictor.classes:
        raise DataError(f"the model knows no class {shown!r}")
    heat = heat_map(predictor, image, shown)
    alike = [] if remembered is None else most_alike(predictor, image, remembered)
    return draw_heat_map(image, heat, f"{shown}, {answer.probabilities[shown]:.1%}", alike), shown


def draw_heat_map(
    image: Pixels, heat: NDArray[np.float32], title: str, alike: Sequence[Alike] = ()
) -> Figure:
    """Draw an image (H, S, 3) and, over a grey copy of it, its heat map (H, S); volumes as sheets.

    What speaks for the class is red, what speaks against it blue; the strongest of either has the
    full colour. Pictures that the model sees alike are below.
    """
    image, heat = sheet(image), sheet(heat)
    whole = Figure(figsize=(7.2, 6.6 if alike else 3.9), layout="constrained")
    figure: Figure | SubFigure = whole
    if alike:
        rows: Any = whole.subfigures(2, 1, height_ratios=[3.9, 2.7])
        figure, below = rows
        below.suptitle("remembered pictures that the model sees most like it", fontsize=SMALL)
        for axes, own in zip(below.subplots(1, len(alike), squeeze=False)[0], alike, strict=True):
            axes.imshow(sheet(own.picture))
            axes.set_title(f"{own.label}, likeness {own.likeness:.2f}", fontsize=SMALL)
            axes.set_axis_off()
    plain, over = figure.subplots(1, 2)
    plain.imshow(image)
    over.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    most = max(float(np.abs(heat).max()), 1e-12)
    shown = over.imshow(
        heat, cmap="RdBu_r", vmin=-most, vmax=most, alpha=np.abs(heat) / most, interpolation="none"
    )
    for axes in (plain, over):
        axes.set_axis_off()
    bar = figure.colorbar(shown, ax=over, fraction=0.046)
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    bar.set_label("for the class (log-odds per 1 % of area)", fontsize=SMALL)
    figure.suptitle(title, fontsize=TEXT)
    return whole
