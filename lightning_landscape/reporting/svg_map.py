"""A map of numbers on a grid as SVG text, in colours by rank, with points marked on it."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise

from lightning_landscape.svg import BOTTOM, LEFT, RIGHT, WIDTH, drawing, labels, text

_TOP, _LOWEST, _HIGHEST = 8, 160, 420  # pixels
_COLOURS = (
    "#440154", "#482576", "#414487", "#35608d", "#2a788e", "#21908d", "#22a884", "#43bf71",
    "#7ad151", "#bcdf27", "#fde725",
)  # fmt: skip


def heat_map(
    x: Sequence[float],
    y: Sequence[float],
    values: Sequence[Sequence[float]],
    *,
    x_label: str,
    y_label: str,
    title: str,
    points: Mapping[str, Sequence[float]] | None = None,
) -> str:
    """Return a map as an `<svg>` element; each colour has the same share of the cells.

    Args:
        x: Where the columns stand, ascending.
        y: Where the rows stand, ascending.
        values: `values[i][j]` is that of column i and row j; gaps where it is not finite.
        x_label: The quantity along x, with its unit.
        y_label: The quantity along y.
        title: What a screen reader says.
        points: Points to mark, by name.

    Example:
        >>> chart = heat_map([0, 1], [0, 1], [[0, 1], [2, math.nan]], x_label="x", y_label="y",
        ...                  title="A map")
        >>> chart.count("<rect")
        3
    """
    xs, ys = cell_borders(x), cell_borders(y)
    room = WIDTH - LEFT - RIGHT
    height = min(max(room * (ys[-1] - ys[0]) / (xs[-1] - xs[0]), _LOWEST), _HIGHEST)
    bottom = _TOP + height

    def across(value: float) -> float:
        return LEFT + (value - xs[0]) / (xs[-1] - xs[0]) * room

    def down(value: float) -> float:
        return bottom - (value - ys[0]) / (ys[-1] - ys[0]) * height

    parts = []
    for i, colours in enumerate(_colours(values)):
        left, right, j = across(xs[i]), across(xs[i + 1]), 0
        for colour, same in groupby(colours):  # one rectangle for neighbours of one colour
            n = len(list(same))
            if colour:
                top, low = down(ys[j + n]), down(ys[j])
                parts.append(
                    f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left + 0.3:.1f}" '
                    f'height="{low - top + 0.3:.1f}" fill="{colour}"/>'
                )
            j += n
    for at in (x[0], x[len(x) // 2], x[-1]):
        parts.append(text(across(at), bottom + 14, f"{at:.3g}", "middle"))
    for at in (y[0], y[len(y) // 2], y[-1]):
        parts.append(text(LEFT - 5, down(at) + 4, f"{at:.3g}", "end"))
    parts += labels(x_label, y_label, _TOP, bottom)
    parts += [_point(name, across(a), down(b)) for name, (a, b) in (points or {}).items()]
    return drawing(parts, title, bottom + BOTTOM)


def _colours(values: Sequence[Sequence[float]]) -> list[list[str]]:
    """Return a colour for each value by its rank, `""` where it is not finite."""
    order = sorted(v for column in values for v in column if math.isfinite(v))
    rank = {value: k for k, value in reversed(list(enumerate(order)))}
    n = len(order)
    return [
        [_COLOURS[rank[v] * len(_COLOURS) // n] if math.isfinite(v) else "" for v in column]
        for column in values
    ]


def cell_borders(centres: Sequence[float]) -> list[float]:
    """Return the borders halfway between cells, so that unequal spacing is shown as it is."""
    if len(centres) == 1:
        return [centres[0] - 0.5, centres[0] + 0.5]
    between = [(a + b) / 2 for a, b in pairwise(centres)]
    return [2 * centres[0] - between[0], *between, 2 * centres[-1] - between[-1]]


def _point(name: str, x: float, y: float) -> str:
    before = x > 0.65 * WIDTH
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#d9702b" stroke="#fff" stroke-width="2"/>'
        f'<text x="{x + (-9 if before else 9):.1f}" y="{y + (15 if y < 20 else -7):.1f}" '
        f'text-anchor="{"end" if before else "start"}" font-weight="bold" fill="#fff" '
        f'stroke="#000" stroke-width="3" paint-order="stroke">{html.escape(name)}</text>'
    )
