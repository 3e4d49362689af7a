"""What all figures have in common: size, margins, colours, scales. No pyplot.

TensorBoard shows a figure about 350 pixels wide, and as it is after a click. All text is 9 points
or more on 4.2 inches, so that it is 10 pixels there. Margins are fixed: a layout that is computed
takes longer than all else. What a figure says stands above its axes: nothing covers a curve.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

TRAIN, VALIDATION, QUIET, INK = "#1f5fa8", "#d1661b", "0.55", "0.2"
SMALL, LARGE = 9, 10.5  # points
MODES = {
    "train": "train mode",
    "eval": "eval mode",
    "recalibrated": "batch norm re-estimated",
}

_WIDTH, _HEIGHT, _DPI = 4.2, 3.7, 120
_LINE = 0.165  # inches from line to line above the axes
_TOP, _BOTTOM = 0.23, 0.62  # inches


def new_figure(
    title: str = "",
    lines: Sequence[tuple[str, str]] = (),
    *,
    left: float = 0.75,
    right: float = 0.14,
) -> tuple[Figure, Axes]:
    """Return a figure with a title, lines of text under it and empty axes below.

    Args:
        title: What is shown.
        lines: Pairs of a text and its colour.
        left: The margin beside the axes, in inches.
        right: The other margin.
    """
    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI)
    place: Any = {"ha": "left", "va": "center"}
    figure.text(0.02, 1 - 0.5 * _TOP / _HEIGHT, title, fontsize=LARGE, weight="bold", **place)
    for k, (text, colour) in enumerate(lines):
        y = 1 - (_TOP + (k + 0.5) * _LINE) / _HEIGHT
        figure.text(0.02, y, text, fontsize=SMALL, color=colour, **place)
    top = _TOP + len(lines) * _LINE + 0.14
    width, height = (_WIDTH - left - right) / _WIDTH, (_HEIGHT - _BOTTOM - top) / _HEIGHT
    axes = figure.add_axes((left / _WIDTH, _BOTTOM / _HEIGHT, width, height))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL, color=QUIET)
    axes.grid(alpha=0.25, linewidth=0.6, axis="y")
    axes.xaxis.label.set_fontsize(SMALL)
    axes.yaxis.label.set_fontsize(SMALL)
    return figure, axes


def title_at(text: str, step: int | None) -> str:
    """Return a title with the training step, if there is one."""
    return text if step is None else f"{text}, step {step}"


def set_rises(axes: Axes, least: float, most: float) -> None:
    """Set the limits of rises of the loss: round numbers, so that runs alike have them in common.

    Example:
        >>> _, axes = new_figure("")
        >>> set_rises(axes, -0.01, 3.7)
        >>> [round(float(end), 2) for end in axes.get_ylim()]
        [-0.25, 5.0]
    """
    top = round_up(max(most, 0.0))
    below = round_up(max(-least, 0.0)) if least < -0.05 * top else 0.05 * top
    n = 4 if f"{top:e}"[0] == "2" else 5
    axes.set_ylim(-below, top)
    ticks = np.linspace(0, top, n + 1)
    if below > 0.05 * top:
        ticks = np.concatenate([np.arange(-math.floor(below / ticks[1]), 0) * ticks[1], ticks])
        ticks = ticks[:: math.ceil(len(ticks) / 9)] if len(ticks) <= 18 else np.array([-below, 0])
    axes.set_yticks(ticks, [short(tick) for tick in ticks])


def round_up(value: float) -> float:
    """Return the next of 1, 2, 5, 10, 20, 50, ...; 1 for what is not positive and finite.

    Example:
        >>> round_up(0.13), round_up(5.0), round_up(51.0)
        (0.2, 5.0, 100.0)
    """
    if not 0 < value < math.inf:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    mantissa = next(m for m in (1, 2, 5, 10) if value <= m * power * (1 + 1e-9))
    return float(f"{mantissa * power:.3g}")


def decades(least: float, most: float) -> tuple[float, float]:
    """Return the powers of ten around some positive numbers, at least two apart.

    Example:
        >>> decades(0.02, 3.0), decades(1.0, 1.0)
        ((0.01, 10.0), (0.1, 10.0))
    """
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    if high - low < 2:
        low, high = low - 1, high + 1 if high == low else high
    return 10.0**low, 10.0**high


def add_scale(figure: Figure, axes: Axes, mesh: Any, ticks: Sequence[float], label: str) -> None:
    """Put a colour scale with plain numbers beside the axes, in the right margin.

    A strip of 64 colours: matplotlib's own takes as long as all else.

    Args:
        figure: The figure.
        axes: What the scale is of.
        mesh: What was plotted, with its `cmap` and `norm`.
        ticks: Values to name.
        label: What they are.
    """
    box = axes.get_position()
    beside = figure.add_axes((box.x1 + 0.02, box.y0, 0.03, box.height))
    strip = np.linspace(0, 1, 64)[:, None]
    beside.imshow(strip, cmap=mesh.cmap, aspect="auto", origin="lower", extent=(0, 1, 0, 1))
    beside.set_xticks([])
    beside.yaxis.tick_right()
    beside.yaxis.set_label_position("right")
    places = np.asarray(mesh.norm(list(ticks)), dtype=float)
    beside.set_yticks(places, [short(tick) for tick in ticks], fontsize=SMALL)
    beside.set_ylabel(label, fontsize=SMALL)


def short(value: float) -> str:
    """Return a number for an axis.

    Example:
        >>> short(0.25), short(1.5e-6), short(2e6)
        ('0.25', '1.5e-6', '2e6')
    """
    return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")


def pixels(figure: Figure) -> np.ndarray:
    """Return the figure as an image, uint8 `[height, width, 3]`."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def png(figure: Figure) -> bytes:
    """Return the figure as the content of a PNG file, of 64 colours: a quarter of the size."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels(figure))
    image.quantize(64, method=Image.Quantize.FASTOCTREE).save(buffer, "png")
    return buffer.getvalue()
