"""Results as matplotlib figures. No pyplot: nothing here touches a person's own figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from lightning_landscape.measures.asymmetry import AsymmetryScore
from lightning_landscape.measures.line import LineScore
from lightning_landscape.measures.rates import median_interval
from lightning_landscape.measures.slices import Slice
from lightning_landscape.reporting.style import (
    MODES,
    QUIET,
    TRAIN,
    VALIDATION,
    cell_edges,
    new_figure,
    set_caption,
    title_at,
)


def plot_slices(
    family: str,
    slices: Sequence[Slice],
    scores: Sequence[AsymmetryScore],
    rate: Mapping[str, Any],
    *,
    validation: Sequence[Slice] = (),
    unit: str = "relative to the weights (filter norm)",
    step: int | None = None,
) -> Figure:
    """Draw the slices along the directions of one family: each, their median and their spread.

    Args:
        family: What the directions are called.
        slices: One slice a direction, on one grid.
        scores: Their scores.
        rate: `rate`, `low`, `high` and `n`, as `AsymmetryRate.compute` gives them; of these and
            perhaps of further directions.
        validation: The same directions on validation batches, if there are any.
        unit: What alpha is measured in.
        step: The training step, for the title.

    Returns:
        A figure.
    """
    figure, axes = new_figure()
    _draw_family(axes, slices, TRAIN, "train" if validation else None)
    if validation:
        _draw_family(axes, validation, VALIDATION, "validation")
    axes.axvline(0.0, color=QUIET, linewidth=0.8, linestyle=":")
    axes.set_xlabel(f"alpha: distance along the direction, {unit}")
    axes.set_ylabel(_loss_label(slices[0]))
    axes.set_title(title_at(f"{family}: {len(slices)} random directions", step), loc="left")
    axes.legend(frameon=False, fontsize=8)
    area, low, high = median_interval([score.area for score in scores])
    interval = "" if math.isnan(low) else f", 95 % interval [{low:+.2f}, {high:+.2f}]"
    lines = [
        f"area (+1: the + side is steep): median {area:+.2f}{interval}",
        f"asymmetric: {_share(rate)}{_unjudged(scores, rate)}",
        MODES.get(slices[0].mode, slices[0].mode),
    ]
    n_nonfinite = sum(line.n_nonfinite for line in slices)
    if n_nonfinite:
        lines.append(f"{n_nonfinite} losses were not finite: drawn as gaps")
    set_caption(figure, lines)
    return figure


def plot_history(
    family: str, steps: Sequence[int], alphas: torch.Tensor, rises: torch.Tensor
) -> Figure:
    """Draw how the median slice changes while training goes on: alpha against training step.

    Args:
        family: What the directions are called.
        steps: The training step of each probe.
        alphas: The grid, `[n_points]`.
        rises: The median over directions of `L(alpha) - L(0)`, `[n_probes, n_points]`.

    Returns:
        A figure.
    """
    figure, axes = new_figure()
    values = np.ma.masked_invalid(rises.T.numpy())
    largest = float(np.abs(values).max()) if values.count() else 1.0
    largest = largest or 1.0
    mesh = axes.pcolormesh(
        cell_edges(np.asarray(steps, dtype=float)),
        cell_edges(alphas.numpy()),
        values,
        norm=SymLogNorm(linthresh=largest / 100, vmin=-largest, vmax=largest),
        cmap="RdBu_r",
    )
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, format="%.2g")
    bar.set_label("rise of the loss, L(alpha) - L(0)")
    bar.ax.minorticks_off()
    axes.axhline(0.0, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel("training step")
    axes.set_ylabel("alpha")
    axes.set_title(f"{family}: median slice over training", loc="left")
    set_caption(
        figure, [f"{len(steps)} probes; blue: below the current loss; symmetric if mirrored"]
    )
    return figure


def plot_line(
    train: Slice,
    score: LineScore,
    *,
    validation: Slice | None = None,
    validation_score: LineScore | None = None,
    step: int | None = None,
) -> Figure:
    """Draw the loss from the current weights (`t = 0`) to the average (`t = 1`) and beyond.

    Args:
        train: The line on train batches.
        score: Its score.
        validation: The line on validation batches, if there are any.
        validation_score: Its score.
        step: The training step, for the title.

    Returns:
        A figure.
    """
    figure, axes = new_figure()
    named = [("train", train, score, TRAIN)]
    if validation is not None and validation_score is not None:
        named.append(("validation", validation, validation_score, VALIDATION))
    lines = []
    for name, line, its_score, colour in named:
        mean, error = _mean_and_error(line)
        axes.plot(line.alphas.numpy(), mean, color=colour, marker=".", markersize=4, label=name)
        axes.fill_between(line.alphas.numpy(), mean - error, mean + error, color=colour, alpha=0.15)
        if not math.isnan(its_score.minimum):
            at = int((line.alphas - its_score.minimum).abs().argmin())
            axes.plot(its_score.minimum, mean[at], marker="v", color=colour, markersize=9)
        gap_error = "" if math.isnan(its_score.gap_stderr) else f" ± {its_score.gap_stderr:.2g}"
        lines.append(
            f"{name}: L(average) - L(current) = {its_score.gap:+.3g}{gap_error}; least at "
            f"t = {its_score.minimum:.2f} (triangle); outward rise ratio "
            f"{its_score.outward_ratio:.3g} (> 1: the average is on the flat side)"
        )
    for t, name in ((0.0, "current"), (1.0, "average")):
        axes.axvline(t, color=QUIET, linewidth=0.8, linestyle=":")
        axes.annotate(
            name, (t, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 2),
            textcoords="offset points", fontsize=8, color="0.35", ha="right" if t == 0 else "left",
        )  # fmt: skip
    axes.set_xlabel(f"t along the line; the distance from 0 to 1 is {score.distance:.3g} (L2)")
    axes.set_ylabel(_loss_label(train))
    axes.set_title(title_at("from the current to the SWA weights", step), loc="left", pad=14)
    axes.legend(frameon=False, fontsize=8)
    set_caption(figure, [*lines, f"bands: ± 1 standard error over batches; {train.mode} mode"])
    return figure


def _draw_family(axes: Axes, slices: Sequence[Slice], colour: str, name: str | None) -> None:
    alphas = slices[0].alphas.numpy()
    means = np.stack([line.mean.numpy() for line in slices])
    means = np.where(np.isfinite(means), means, np.nan)
    for mean in means:
        axes.plot(alphas, mean, color=colour, linewidth=0.6, alpha=0.35)
    middle, low, high = _quantiles(means)
    prefix = f"{name}, " if name else ""
    axes.plot(
        alphas, middle, color=colour, linewidth=2, marker=".", label=f"{prefix}median direction"
    )
    if len(slices) > 1:
        axes.fill_between(
            alphas, low, high, color=colour, alpha=0.2, label=f"{prefix}middle half of directions"
        )


def _quantiles(means: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    some = np.isfinite(means).any(axis=0)
    out = np.full((3, means.shape[1]), np.nan)
    out[:, some] = np.nanquantile(means[:, some], (0.5, 0.25, 0.75), axis=0)
    return out[0], out[1], out[2]


def _mean_and_error(line: Slice) -> tuple[np.ndarray, np.ndarray]:
    losses = line.losses.numpy()
    losses = np.where(np.isfinite(losses), losses, np.nan)
    n = losses.shape[1]
    error = losses.std(axis=1, ddof=1) / math.sqrt(n) if n > 1 else np.zeros(len(losses))
    return losses.mean(axis=1), error


def _loss_label(line: Slice) -> str:
    n = line.losses.shape[1]
    return f"loss, mean of {n} batch{'es' if n > 1 else ''}"


def _unjudged(scores: Sequence[AsymmetryScore], rate: Mapping[str, Any]) -> str:
    off = sum(score.verdict == "off-minimum" for score in scores)
    shown = f" of the {len(scores)} drawn here" if rate["n"] > len(scores) else ""
    return f"; {off}{shown} still lead downhill and do not count" if off else ""


def _share(rate: Mapping[str, Any]) -> str:
    n, share = int(rate["n"]), float(rate["rate"])
    if not n:
        return "nothing was measured"
    interval = f"[{100 * float(rate['low']):.0f}, {100 * float(rate['high']):.0f}] %"
    return f"{100 * share:.0f} % of {n} directions, 95 % interval {interval}"
