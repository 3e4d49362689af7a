"""Gradient breakdown as matplotlib figures. No pyplot."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

import lightning_landscape.reporting.style as style
from lightning_landscape.measures.breakdown import GradientBreakdown
from lightning_landscape.measures.words import counted
from lightning_landscape.reporting.svg_map import cell_borders

_MEASURED = style.VALIDATION
_LAYERS = matplotlib.colormaps["viridis"]
_MOST_NAMES = 12  # on the axis of a heat map


def plot_breakdown(
    direction: str, found: GradientBreakdown, *, mode: str = "train", step: int | None = None
) -> Figure:
    """Plot how much each layer's gradient changes along a direction, beside what the model says.

    Args:
        direction: The name of the direction; `"update"`, and names that end in `/update`, get a
            mark at the step taken.
        found: What was measured.
        mode: How the network was run.
        step: The training step, for the title.

    Returns:
        A figure.
    """
    is_update = direction.rpartition("/")[2] == "update"
    values, model = _positive(found.breakdown), _positive(found.model)
    most = _changed_most(values)
    lines = [
        (_limits_line(found), _MEASURED),
        (_model_line(found), "black"),
        *((text, style.INK) for text in _layer_lines(found, most)),
    ]
    figure, axes = style.new_figure(
        style.title_at(f"breakdown along {direction}", step), lines, left=0.85
    )
    axes.set_xscale("log")
    etas = found.etas.numpy()
    for k, row in enumerate(values):
        colour = _LAYERS(0.9 * k / max(len(values) - 1, 1))
        thick = {"linewidth": 2.2, "marker": "o", "markersize": 4} if k == most else {}
        axes.plot(etas, row, color=colour, **{"linewidth": 1, "marker": ".", **thick})
    axes.plot(etas, model, color="black", linestyle="--", linewidth=1.6, label="model", zorder=4)
    axes.set_xlim(etas[0] / 1.25, etas[-1] * 1.25)
    _scale(axes, np.concatenate([values.ravel(), model]))
    _mark_limits(axes, found, is_update)
    shown = etas[:: math.ceil(len(etas) / 5)]
    axes.set_xticks(shown, [f"{eta:.2g}" for eta in shown])
    axes.minorticks_off()
    unit = "1 is the step taken (grey)" if is_update else "in units of the direction"
    batch = f"one batch, {style.MODES.get(mode, mode)}"
    axes.set(xlabel=f"eta: how far, {unit}\n{batch}", ylabel="relative change of the gradient")
    return figure


def plot_breakdown_history(
    direction: str, steps: Sequence[int], layers: Sequence[str], values: Tensor, *, eta: float = 1.0
) -> Figure:
    """Plot how each layer's breakdown changes while training goes on: layers x training steps.

    Args:
        direction: The name of the direction.
        steps: The training step of each probe.
        layers: The layers, the first on top.
        values: The breakdown, `[n_probes, n_layers]`; nan where a layer had no gradient.
        eta: The step along the direction at which it was measured.

    Returns:
        A figure. The colour scale ends at powers of ten, so that runs can be compared.
    """
    grid = np.ma.masked_invalid(_positive(values).T)
    low, high = style.decades(float(grid.min()), float(grid.max())) if grid.count() else (0.1, 10.0)
    every = max(1, math.ceil(len(layers) / _MOST_NAMES))
    named = f", every {every}th is named" if every > 1 else ""
    counts = f"{counted(len(steps), 'probe')}, {counted(len(layers), 'layer')}"
    lines = [(f"{counts}{named}; blank: no gradient", style.INK)]
    figure, axes = style.new_figure(f"breakdown along {direction}", lines, left=1.45, right=0.98)
    x, y = cell_borders(steps), np.arange(len(layers) + 1) - 0.5
    mesh = axes.pcolormesh(x, y, grid, norm=LogNorm(low, high), cmap="magma")
    style.add_scale(figure, axes, mesh, _powers(low, high).tolist(), "change")
    axes.set_yticks(range(0, len(layers), every), [_short(name) for name in layers[::every]])
    axes.invert_yaxis()
    axes.grid(False)
    axes.locator_params(axis="x", nbins=3, integer=True)
    axes.set_xlabel(f"training step; measured at eta = {eta:.3g}")
    return figure


def _scale(axes: Axes, values: np.ndarray) -> None:
    """Set a log axis that begins and ends at powers of ten; none where nothing is positive."""
    known = values[np.isfinite(values)]
    if not len(known):
        return
    low, high = style.decades(float(known.min()), float(known.max()))
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    ticks = _powers(low, high)
    axes.set_yticks(ticks, [style.short(tick) for tick in ticks])


def _powers(low: float, high: float) -> np.ndarray:
    """Return at most six powers of ten from one to another, evenly spaced."""
    powers = np.arange(round(math.log10(low)), round(math.log10(high)) + 1)
    return 10.0 ** powers[:: math.ceil(len(powers) / 6)]


def _mark_limits(axes: Axes, found: GradientBreakdown, is_update: bool) -> None:
    low, high = axes.get_xlim()
    trust = found.trust_lr / (found.relative_step or math.nan)
    marks = [(found.descent_limit, _MEASURED, "-"), (found.break_even, _MEASURED, ":")]
    for eta, colour, dash in [*marks, (trust, "black", ":")]:
        if low < eta < high:
            axes.axvline(eta, color=colour, linestyle=dash, linewidth=1.4)
    if is_update:
        axes.axvline(1.0, color=style.QUIET, linewidth=4, alpha=0.5, zorder=1)


def _limits_line(found: GradientBreakdown) -> str:
    limit, even = _reached(found, found.descent_limit), _reached(found, found.break_even)
    return f"descent limit {limit} (line), break-even {even} (dots)"


def _model_line(found: GradientBreakdown) -> str:
    promised = f"promises {found.trust_lr:.2g}" if found.trust_lr > 0 else "promises no step"
    return f"dashed: model (deep relative trust), {promised} (dots)"


def _layer_lines(found: GradientBreakdown, most: int) -> list[str]:
    n = len(found.names)
    lines = [f"{n} layers: first dark, last light; a relative step of {found.relative_step:.2g}"]
    if n > 1 and most >= 0:
        lines.append(f"thick, changed most: {_short(found.names[most], 34)}")
    missing = [f"{len(found.dead)} without a gradient"] if found.dead else []
    n_nonfinite = int((~found.breakdown.isfinite()).sum())
    missing += [f"gaps: {n_nonfinite} of the values not finite"] if n_nonfinite else []
    return [*lines, "; ".join(missing)] if missing else lines


def _reached(found: GradientBreakdown, eta: float) -> str:
    return f"> {float(found.etas[-1]):.2g}" if math.isinf(eta) else f"{eta:.2g}"


def _changed_most(values: np.ndarray) -> int:
    """Return the layer that changed most in all; -1 where nothing is known."""
    return int(np.argmax(np.nansum(values, axis=1))) if np.isfinite(values).any() else -1


def _positive(values: Tensor) -> np.ndarray:
    """Return what a log axis can show; the rest are gaps."""
    array = values.numpy()
    return np.where(np.isfinite(array) & (array > 0), array, np.nan)


def _short(name: str, most: int = 17) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]
