"""The loss on a plane, as a contour figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.colors import FuncNorm
from matplotlib.figure import Figure
from torch import Tensor

import lightning_landscape.reporting.style as style

_LEVELS = 14


def plot_plane(
    alphas1: Tensor,
    alphas2: Tensor,
    mean: Tensor,
    *,
    marks: Mapping[str, Sequence[float]],
    mode: str,
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

    Returns:
        A figure.
    """
    lines = [(f"lines: equal shares of the points; {style.MODES.get(mode, mode)}", style.INK)]
    figure, axes = style.new_figure("loss on a plane", lines, right=1.0)
    values = np.ma.masked_invalid(mean.numpy().T)
    levels = np.unique(np.quantile(values.compressed(), np.linspace(0, 1, _LEVELS)))
    if len(levels) > 1:
        x, y, ranks = alphas1.numpy(), alphas2.numpy(), np.linspace(0, 1, len(levels))
        there = partial(np.interp, xp=levels, fp=ranks)
        back = partial(np.interp, xp=ranks, fp=levels)
        norm = FuncNorm((there, back), vmin=levels[0], vmax=levels[-1])
        filled = axes.contourf(x, y, values, levels=levels, cmap="viridis", norm=norm)
        axes.contour(x, y, values, levels=levels, colors="w", linewidths=0.4)
        ticks = levels[:: math.ceil(len(levels) / 6)]
        style.add_scale(figure, axes, filled, ticks.tolist(), "loss, mean over the batches")
    for k, (name, (x, y)) in enumerate(marks.items()):
        axes.plot(
            x, y, marker="o^sD"[k % 4], color=style.VALIDATION, markeredgecolor="w", markersize=8
        )
        axes.annotate(
            name, (x, y), xytext=(6, 6), textcoords="offset points", color="w", fontsize=style.SMALL
        )
    axes.set_aspect("equal", adjustable="box")
    axes.locator_params(nbins=5)
    axes.set(xlabel="along the first direction", ylabel="along the second direction")
    axes.grid(visible=False)
    return figure
