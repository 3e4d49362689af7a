"""Slices, their history, lines and planes as matplotlib figures. No pyplot."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

import lightning_landscape.reporting.style as style
from lightning_landscape.measures.line import LineScore, compare_ends, rise_stderr
from lightning_landscape.measures.slices import Slice, grid_index
from lightning_landscape.measures.survey import Survey
from lightning_landscape.measures.words import counted, family_verdict, is_finite
from lightning_landscape.measures.words_line import flat_side
from lightning_landscape.reporting.svg_map import cell_borders

_UNITS = {
    "filter": "relative to the weights (filter norm)",
    "layer": "relative to the weights (layer norm)",
    "model": "relative to the weights (norm of the group)",
    "none": "L2 norm",
}
_NOT_ASYMMETRIC = {
    "symmetric": "symmetric",
    "off-minimum": "still falling",
    "unresolved": "unresolved",
}


def plot_survey(found: Survey, *, step: int | None = None) -> Figure:
    """Plot the slices along the directions of one family: each, their median and middle half.

    Args:
        found: What was measured along them, with the validation batches if there are any.
        step: The training step, for the title.

    Returns:
        A figure. The y axis is the rise of the loss above the one at 0.
    """
    slices = found.slices
    said = [_area_line(found), *_rate_lines(found)]
    if not is_finite(found):
        said = ["the loss at the current weights is not finite"]
    lines = [(text, style.INK) for text in said]
    if n_nonfinite := sum(line.n_nonfinite for line in slices):
        lines.append((f"gaps: {n_nonfinite} of the losses not finite", style.INK))
    sets = [(slices, style.TRAIN)]
    if found.validation:
        lines += [("training batches", style.TRAIN), ("validation batches", style.VALIDATION)]
        sets.append((found.validation, style.VALIDATION))
    title = f"{style.title_at(found.family, step)}: {family_verdict(found)}"
    figure, axes = style.new_figure(title, lines)
    ends = np.array([_plot_family(axes, part, colour) for part, colour in sets])
    style.set_rises(axes, ends[:, 0].min(), ends[:, 1].max())
    axes.axvline(0.0, color=style.QUIET, linewidth=0.8, linestyle=":")
    unit = _UNITS.get(found.normalize, found.normalize)
    batches = f"{counted(len(slices), 'direction')} (thick: median), {_batches(slices[0])}"
    axes.set(
        xlabel=f"alpha: distance, {unit}\n{batches}", ylabel="rise of the loss above alpha = 0"
    )
    return figure


def plot_history(
    family: str, steps: Sequence[int], alphas: torch.Tensor, rises: torch.Tensor
) -> Figure:
    """Plot how the median slice changes while training goes on: alpha against training step.

    Args:
        family: The name of the directions.
        steps: The training step of each probe.
        alphas: The grid, `[n_points]`.
        rises: The median over directions of `L(alpha) - L(0)`, `[n_probes, n_points]`.

    Returns:
        A figure. The colour scale ends at a power of ten, so that runs can be compared.
    """
    note = f"{counted(len(steps), 'probe')}; symmetric where mirrored"
    figure, axes = style.new_figure(
        f"{family}: median slice",
        [(note, style.INK), ("blue: below the current loss", style.TRAIN)],
        right=1.0,
    )
    values = np.ma.masked_invalid(rises.T.numpy())
    largest = float(np.abs(values).max()) if values.count() else 1.0
    end = 10.0 ** math.ceil(math.log10(largest)) if largest > 0 else 1.0
    x, y = cell_borders(steps), cell_borders(alphas.tolist())
    norm = SymLogNorm(linthresh=end / 100, vmin=-end, vmax=end)
    mesh = axes.pcolormesh(x, y, values, norm=norm, cmap="RdBu_r")
    ticks = [-end, -end / 10, -end / 100, 0, end / 100, end / 10, end]
    style.add_scale(figure, axes, mesh, ticks, "rise of the loss")
    axes.axhline(0.0, color="black", linewidth=0.8, linestyle=":")
    axes.locator_params(axis="x", nbins=4, integer=True)
    axes.set(xlabel="training step", ylabel="alpha")
    return figure


def plot_line(train: Slice, validation: Slice | None = None, *, step: int | None = None) -> Figure:
    """Plot the loss from the current weights (`t = 0`) to the average (`t = 1`) and beyond.

    Args:
        train: The line on train batches.
        validation: The line on validation batches, if there are any.
        step: The training step, for the title.

    Returns:
        A figure. The y axis is the rise of the loss above that of the current weights.
    """
    sets = [("training", train, compare_ends(train), style.TRAIN)]
    if validation is not None:
        sets.append(("validation", validation, compare_ends(validation), style.VALIDATION))
    score = sets[0][2]
    lines = [(_gap_line(name, own), colour) for name, _, own, colour in sets]
    lines.append((_side_line(score), style.INK))
    figure, axes = style.new_figure(style.title_at("current weights to average", step), lines)
    ends = np.array([_plot_line(axes, line, own, colour) for _, line, own, colour in sets])
    style.set_rises(axes, ends[:, 0].min(), ends[:, 1].max())
    for t, name, side in ((0.0, "current ", "right"), (1.0, " average", "left")):
        axes.axvline(t, color=style.QUIET, linewidth=0.8, linestyle=":")
        axes.annotate(
            name, (t, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3), ha=side,
            textcoords="offset points", fontsize=style.SMALL, color=style.INK,
        )  # fmt: skip
    axes.set(
        xlabel=f"t: distance from the current weights; 1 is {score.distance:.3g} (L2)\n"
        f"± 1 standard error; {_batches(train)}",
        ylabel="rise of the loss above t = 0",
    )
    return figure


def _plot_family(axes: Axes, slices: Sequence[Slice], colour: str) -> tuple[float, float]:
    """Plot each rise thin, their median thick and their middle half; return the rises' ends."""
    alphas = slices[0].alphas.numpy()
    rises = np.stack([_rise(line) for line in slices])
    paths = [np.column_stack([alphas, rise]) for rise in rises]
    thin = LineCollection(paths, colors=colour, linewidths=0.6, alpha=0.4)
    axes.add_collection(thin, autolim=False)
    shares = torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64)
    middle, low, high = torch.from_numpy(rises).nanquantile(shares, dim=0).numpy()
    axes.plot(alphas, middle, color=colour, linewidth=2, marker=".", label="median direction")
    if len(slices) > 1:
        axes.fill_between(alphas, low, high, color=colour, alpha=0.2, linewidth=0)
    return _ends(rises)


def _plot_line(axes: Axes, line: Slice, score: LineScore, colour: str) -> tuple[float, float]:
    """Plot the rise with its error, and a triangle where it is least; return its ends."""
    t, rise, error = line.alphas.numpy(), _rise(line), rise_stderr(line).nan_to_num().numpy()
    axes.plot(t, rise, color=colour, marker=".", markersize=4)
    axes.fill_between(t, rise - error, rise + error, color=colour, alpha=0.15, linewidth=0)
    if not math.isnan(score.minimum):
        at = grid_index(line.alphas, score.minimum)
        axes.plot(t[at], rise[at], marker="v", color=colour, markersize=8)
    return _ends(rise)


def _rise(line: Slice) -> np.ndarray:
    """Return `L(alpha) - L(0)`, nan where either is not finite."""
    mean = line.mean.numpy()
    rise = mean - mean[grid_index(line.alphas, 0.0)]
    return np.where(np.isfinite(rise), rise, np.nan)


def _ends(rises: np.ndarray) -> tuple[float, float]:
    known = rises[np.isfinite(rises)]
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)


def _batches(line: Slice) -> str:
    n = line.losses.shape[1]
    return f"{n} batch{'es' if n > 1 else ''}, {style.MODES.get(line.mode, line.mode)}"


def _area_line(found: Survey) -> str:
    area, low, high = found.area
    interval = "" if math.isnan(low) else f" [{low:+.2f}, {high:+.2f}]"
    side = ", + side steep" if low > 0 else ", \N{MINUS SIGN} side steep" if high < 0 else ""
    return f"area {area:+.2f}{interval}{side}"


def _rate_lines(found: Survey) -> list[str]:
    n, share, low, high = (float(found.rate[name]) for name in ("n", "rate", "low", "high"))
    if not n:
        return ["nothing was measured"]
    interval = f"{100 * share:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
    first = f"asymmetric: {round(share * n)} of {counted(round(n), 'direction')}, {interval}"
    verdicts = [score.verdict for score in found.scores]
    counts = {text: verdicts.count(verdict) for verdict, text in _NOT_ASYMMETRIC.items()}
    others = ", ".join(f"{count} {text}" for text, count in counts.items() if count)
    shown = f"of the {len(verdicts)} shown" if n > len(verdicts) else "not asymmetric"
    return [first, f"{shown}: {others}"] if others else [first]


def _gap_line(name: str, score: LineScore) -> str:
    error = "" if math.isnan(score.gap_stderr) else f" ± {score.gap_stderr:.2g}"
    least = "beyond the grid" if math.isnan(score.minimum) else f"at t = {score.minimum:.2f}"
    return f"{name}: {score.gap:+.2g}{error} at the average, least {least}"


def _side_line(score: LineScore) -> str:
    side = flat_side(score)
    if not side:
        return "no verdict on which of the two is on the flat side"
    where = "flat" if side > 0 else "steep"
    return (
        f"average on the {where} side: outward rises' ratio {score.outward_ratio:.2g}, "
        f"near {score.outward_ratio_near:.2g}"
    )
