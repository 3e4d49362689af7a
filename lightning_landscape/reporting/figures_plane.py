"""The loss on a plane, as a contour figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lightning_landscape.reporting.style import MODES, new_figure, set_caption

_LEVELS = 14


def plot_plane(
    alphas1: Tensor,
    alphas2: Tensor,
    mean: Tensor,
    *,
    marks: Mapping[str, Sequence[float]] | None = None,
    mode: str = "train",
    title: str = "loss on a plane",
    labels: tuple[str, str] = ("along the first direction", "along the second direction"),
) -> Figure:
    """Plot the loss on a plane, with some points marked and named.

    Levels are spaced by ranks of the losses: a plane mostly has a deep valley in high ground, and
    equal steps would show the ground alone.

    Args:
        alphas1: Where along the first direction, `[n1]`.
        alphas2: Where along the second, `[n2]`.
        mean: The loss at each point, `[n1, n2]`; gaps where it is not finite.
        marks: Points to mark, by name, in units of the axes.
        mode: How the network was run.
        title: What stands above.
        labels: What the axes are, with their unit.

    Returns:
        A figure.
    """
    figure, axes = new_figure()
    values = np.ma.masked_invalid(mean.numpy().T)
    if values.count():
        levels = np.unique(np.quantile(values.compressed(), np.linspace(0, 1, _LEVELS)))
        if len(levels) > 1:
            filled = axes.contourf(
                alphas1.numpy(), alphas2.numpy(), values, levels=levels, cmap="viridis"
            )
            axes.contour(
                alphas1.numpy(), alphas2.numpy(), values, levels=levels, colors="w", linewidths=0.4
            )
            bar = figure.colorbar(filled, ax=axes, pad=0.02, format="%.3g", ticks=levels[::3])
            bar.set_label("loss, mean over the batches")
    for k, (name, (x, y)) in enumerate((marks or {}).items()):
        axes.plot(x, y, marker="o^sD"[k % 4], color="#d1661b", markeredgecolor="w", markersize=8)
        axes.annotate(
            name, (x, y), xytext=(6, 6), textcoords="offset points", color="w", fontsize=9
        )
    axes.set_aspect("equal", adjustable="datalim" if marks is None else "box")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title, loc="left")
    axes.grid(visible=False)
    set_caption(figure, [MODES.get(mode, mode)])
    return figure
