"""What all figures have in common: size, axes, colours, titles. No pyplot."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

TRAIN, VALIDATION, QUIET = "#1f5fa8", "#d1661b", "0.55"
MODES = {
    "train": "train mode (batch statistics, one fixed dropout mask)",
    "eval": "eval mode (running statistics, no dropout)",
    "recalibrated": "batch-norm statistics re-estimated at every point, no dropout",
}


def new_figure() -> tuple[Figure, Axes]:
    """Return an empty figure in the style of all."""
    figure = Figure(figsize=(5.6, 4.2), dpi=125, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def set_caption(figure: Figure, lines: Sequence[str]) -> None:
    """Write under a figure what its numbers are, one line or more each."""
    wrapped = [textwrap.fill(line, 84, subsequent_indent="    ") for line in lines]
    figure.supxlabel("\n".join(wrapped), fontsize=8, color="0.3", x=0.01, ha="left")


def title_at(text: str, step: int | None) -> str:
    """Return a title with the training step, if there is one."""
    return text if step is None else f"{text}, step {step}"


def cell_edges(centres: np.ndarray) -> np.ndarray:
    """Return the borders halfway between cells, so that unequal spacing is drawn as it is."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    between = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - between[0]], between, [2 * centres[-1] - between[-1]]])


def pixels(figure: Figure) -> np.ndarray:
    """Return the figure as an image, uint8 `[height, width, 3]`."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def png(figure: Figure) -> bytes:
    """Return the figure as the content of a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
