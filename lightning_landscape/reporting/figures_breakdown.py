"""Gradient breakdown as matplotlib figures, in the style of `plots`. No pyplot."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from torch import Tensor

from lightning_landscape.measures.breakdown import GradientBreakdown
from lightning_landscape.reporting.style import (
    MODES,
    QUIET,
    cell_edges,
    new_figure,
    set_caption,
    title_at,
)

_MODEL, _MEASURED = "black", "#d1661b"
_LAYERS = matplotlib.colormaps["viridis"]
_MOST_NAMES = 24  # on the axis of a heat map


def plot_breakdown(
    direction: str, found: GradientBreakdown, *, mode: str = "train", step: int | None = None
) -> Figure:
    """Draw how much each layer's gradient changes along a direction, beside what the model says.

    Args:
        direction: What the direction is called; `"update"`, and names that end in `/update`, get a
            mark at the step taken.
        found: What was measured.
        mode: How the network was run.
        step: The training step, for the title.

    Returns:
        A figure.
    """
    figure, axes = new_figure()
    axes.set_xscale("log")
    etas = found.etas.numpy()
    is_update = direction.rpartition("/")[2] == "update"
    model = _drawable(found.model)
    values = _drawable(found.breakdown)
    _draw_layers(axes, etas, values, found.names)
    label = "deep relative trust (model)"
    axes.plot(etas, model, color=_MODEL, linestyle="--", linewidth=1.6, label=label, zorder=4)
    if np.isfinite(values).any() or np.isfinite(model).any():
        axes.set_yscale("log")
    axes.set_xlim(etas[0] / 1.25, etas[-1] * 1.25)
    if is_update:
        axes.axvline(1.0, color=QUIET, linewidth=4, alpha=0.5, label="the step taken", zorder=1)
    for eta, colour, style, name in (
        (found.descent_limit, _MEASURED, "-", "descent limit (measured)"),
        (found.break_even, _MEASURED, ":", "break-even (measured)"),
        (found.trust_lr / (found.relative_step or math.nan), _MODEL, ":", "trust_lr (model)"),
    ):
        if axes.get_xlim()[0] < eta < axes.get_xlim()[1]:
            axes.axvline(eta, color=colour, linestyle=style, linewidth=1.4, label=name)
    unit = "1 is the step taken" if is_update else "in units of the direction"
    axes.set_xlabel(f"eta: how far along the direction, {unit}")
    axes.set_ylabel("breakdown: change of the gradient,\nrelative to its size")
    axes.set_title(title_at(f"gradient breakdown along {direction}", step), loc="left")
    _name_ticks(axes, etas, found.relative_step)
    axes.legend(loc="upper left", fontsize=7, framealpha=0.85, edgecolor="none")
    set_caption(figure, _breakdown_lines(found, is_update, mode))
    return figure


def plot_breakdown_history(
    direction: str, steps: Sequence[int], layers: Sequence[str], values: Tensor, *, eta: float = 1.0
) -> Figure:
    """Draw how each layer's breakdown changes while training goes on: layers x training steps.

    Args:
        direction: What the direction is called.
        steps: The training step of each probe.
        layers: The layers, the first on top.
        values: The breakdown, `[n_probes, n_layers]`; nan where a layer had no gradient.
        eta: How far along the direction it was measured.

    Returns:
        A figure.
    """
    figure, axes = new_figure()
    grid = np.ma.masked_invalid(_drawable(values).T)
    mesh = axes.pcolormesh(
        cell_edges(np.asarray(steps, dtype=float)),
        np.arange(len(layers) + 1) - 0.5,
        grid,
        norm=LogNorm(*_limits(grid)) if grid.count() else Normalize(0, 1),
        cmap="magma",
    )
    bar = figure.colorbar(mesh, ax=axes, pad=0.02)
    if grid.count():
        ticks = np.geomspace(*_limits(grid), 6)
        bar.set_ticks(list(ticks), labels=[f"{tick:.3g}" for tick in ticks])
        bar.minorticks_off()
    bar.set_label("breakdown: change of the gradient,\nrelative to its size")
    every = max(1, math.ceil(len(layers) / _MOST_NAMES))
    shown = range(0, len(layers), every)
    axes.set_yticks(list(shown), [_short(layers[k]) for k in shown], fontsize=7)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlabel("training step")
    axes.set_title(f"gradient breakdown along {direction}, eta = {eta:.3g}", loc="left")
    lines = [f"{len(steps)} probes; blank: the layer had no gradient, or it was not finite"]
    if every > 1:
        lines.append(f"{len(layers)} layers, every {every}th is named")
    set_caption(figure, lines)
    return figure


def _draw_layers(axes: Axes, etas: np.ndarray, values: np.ndarray, names: Sequence[str]) -> None:
    """Draw a line a layer, from the first, dark, to the last, light; name those that matter."""
    n = len(names)
    totals = np.nansum(values, axis=1) if n else []
    most = int(np.argmax(totals)) if n else -1
    for k, row in enumerate(values):
        places = [("first", k == 0), ("last", k == n - 1), ("changed most", k == most)]
        roles = [role for role, here in places if here and n > 1]
        named = n <= 6 or bool(roles)
        note = f" ({', '.join(roles)})" if roles else ""
        axes.plot(
            etas,
            row,
            color=_LAYERS(0.9 * k / max(n - 1, 1)),
            linewidth=2 if k == most else 1,
            marker=".",
            markersize=6 if k == most else 3,
            label=f"{_short(names[k])}{note}" if named else None,
        )


def _name_ticks(axes: Axes, etas: np.ndarray, relative_step: float) -> None:
    """Name each eta that was measured below, and above what it is as a relative step."""
    every = math.ceil(len(etas) / 8)
    shown = etas[::every]
    axes.set_xticks(shown, [f"{eta:.3g}" for eta in shown], fontsize=8)
    axes.minorticks_off()
    if not 0 < relative_step < math.inf or math.isclose(relative_step, 1, rel_tol=1e-3):
        return
    top = axes.twiny()
    top.set_xscale("log")
    top.set_xlim(axes.get_xlim())
    top.set_xticks(shown, [f"{eta * relative_step:.2g}" for eta in shown], fontsize=8)
    top.minorticks_off()
    top.spines["right"].set_visible(False)
    top.set_xlabel("relative step: the largest ||D|| / ||W|| of a layer", fontsize=8)


def _breakdown_lines(found: GradientBreakdown, is_update: bool, mode: str) -> list[str]:
    taken = f"the step taken {found.relative_step:.3g}, " if is_update else ""
    lines = [
        f"as relative steps: {taken}descent limit {_relative(found, found.descent_limit)}, "
        f"break-even {_relative(found, found.break_even)},",
        f"trust_lr of deep relative trust (model) {found.trust_lr:.3g}"
        + (" (no step is promised)" if found.trust_lr <= 0 else ""),
        f"{len(found.names)} layers, one batch; {MODES.get(mode, mode)}",
    ]
    if found.dead:
        lines.append(f"{len(found.dead)} layers without a gradient left out")
    n_nonfinite = int((~found.breakdown.isfinite()).sum())
    if n_nonfinite:
        lines.append(f"{n_nonfinite} values were not finite: drawn as gaps")
    return lines


def _relative(found: GradientBreakdown, eta: float) -> str:
    if math.isinf(eta):
        return f"beyond {float(found.etas[-1]) * found.relative_step:.3g}"
    return f"{eta * found.relative_step:.3g}"


def _drawable(values: Tensor) -> np.ndarray:
    """Return what a log axis can show; the rest are gaps."""
    array = values.numpy()
    return np.where(np.isfinite(array) & (array > 0), array, np.nan)


def _limits(grid: np.ma.MaskedArray) -> tuple[float, float]:
    low, high = float(grid.min()), float(grid.max())
    return (low, high) if low < high else (low / 2, high * 2)


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]
