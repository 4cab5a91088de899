"""An image, and beside it where its class is seen."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dynammo.data.formats.pictures import Pixels
from dynammo.reporting.figures import SMALL, TEXT


def draw_heat_map(image: Pixels, heat: NDArray[np.float32], title: str) -> Figure:
    """Draw an image (S, S, 3) and, over a grey copy of it, its heat map (S, S).

    What speaks for the class is red, what speaks against it blue; the strongest of either has the
    full colour.
    """
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
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
    return figure
