"""Line charts as SVG text, from lists of numbers: what notebooks and pages show without scripts.

Text and axes take the colour of the text around them, so that a chart fits a light and a dark page.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BLUE, ORANGE = "#3b7fc4", "#d9702b"
WIDTH, LEFT, RIGHT, BOTTOM = 480, 58, 12, 40
_HEIGHT, _TOP = 270, 12  # around the area where lines are drawn


@dataclass(frozen=True)
class Line:
    """A line of a chart; values that are not finite are gaps.

    Attributes:
        x: Where, ascending.
        y: The values, one each.
        label: What the legend calls it; `""` leaves it out.
        colour: As in CSS.
        width: In pixels.
        opacity: Between 0 and 1.
        dashed: Whether it is dashed.
        band: The lower and the upper edge of a band about it.
    """

    x: Sequence[float]
    y: Sequence[float]
    label: str = ""
    colour: str = BLUE
    width: float = 2.0
    opacity: float = 1.0
    dashed: bool = False
    band: tuple[Sequence[float], Sequence[float]] | None = None


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    title: str,
    marks: Sequence[tuple[float, str]] = (),
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """Return a chart as an `<svg>` element.

    Args:
        lines: What to plot; the last one lies on top.
        x_label: The quantity along x, with its unit.
        y_label: The quantity along y, with its unit.
        title: What a screen reader says.
        marks: Vertical dotted lines: where, and what they are called.
        log_x: Whether x is logarithmic; values up to 0 are gaps then.
        log_y: Whether y is.

    Example:
        >>> chart = line_chart([Line([0, 1], [0, 2])], x_label="t", y_label="loss", title="A line")
        >>> chart.startswith('<svg xmlns="http://www.w3.org/2000/svg"'), chart.count("<path")
        (True, 1)
    """
    edges = [edge for line in lines for edge in line.band or ()]
    xs = _Axis.of([v for line in lines for v in line.x], log_x, LEFT, WIDTH - RIGHT, pad=0.0)
    ys = _Axis.of(
        [v for values in [*(line.y for line in lines), *edges] for v in values],
        log_y, _HEIGHT - BOTTOM, _TOP, pad=0.05,
    )  # fmt: skip
    named = [line for line in lines if line.label]
    tracks = [_track(line.x, line.y, xs, ys) for line in lines]
    if lines and not any(tracks):
        words = "Nothing to plot: no value is finite and on the axis."
        return drawing([text(0, 14, words, "start")], title, 20)
    parts = [
        *_axes(xs, ys),
        *labels(x_label, y_label, _TOP, _HEIGHT - BOTTOM),
        *(_mark(xs, x, label) for x, label in marks if xs.contains(x)),
        *(_band(line, xs, ys) for line in lines if line.band),
        *(_stroke(track, line, line.opacity) for track, line in zip(tracks, lines, strict=True)),
        *(_legend(line, _HEIGHT + 18 * k) for k, line in enumerate(named)),
    ]
    return drawing(parts, title, _HEIGHT + 18 * len(named))


def drawing(parts: Iterable[str], title: str, height: float) -> str:
    """Return an `<svg>` element, `WIDTH` pixels wide, with what a screen reader says of it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
        f'viewBox="0 0 {WIDTH} {height:.0f}" role="img" font-family="sans-serif" font-size="11">'
        f"<title>{html.escape(title)}</title>{''.join(parts)}</svg>"
    )


def labels(x_label: str, y_label: str, top: float, bottom: float) -> list[str]:
    """Return what the axes are called, below and left of an area from `top` to `bottom`."""
    middle = (top + bottom) / 2
    turned = f'transform="rotate(-90 13 {middle:g})"'
    below = text((LEFT + WIDTH - RIGHT) / 2, bottom + 32, x_label, "middle")
    return [below, text(13, middle, y_label, "middle", turned)]


def text(x: float, y: float, words: str, anchor: str, more: str = "") -> str:
    """Return a `<text>` element; `more` is further attributes."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor" {more}>'
        f"{html.escape(words)}</text>"
    )


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool
    start: float
    end: float

    @classmethod
    def of(
        cls, values: Sequence[float], log: bool, start: float, end: float, *, pad: float
    ) -> _Axis:
        known = [v for v in map(float, values) if math.isfinite(v) and (v > 0 or not log)]
        known = [math.log10(v) for v in known] if log else known
        low, high = min(known, default=0.0), max(known, default=1.0)
        margin = pad * (high - low) if high > low else 0.5
        return cls(low - margin, high + margin, log, start, end)

    def at(self, value: float) -> float:
        """Return the pixel of a value; nan for one that is not on the axis."""
        if not math.isfinite(value) or (self.log and value <= 0):
            return math.nan
        place = math.log10(value) if self.log else value
        return self.start + (place - self.low) / (self.high - self.low) * (self.end - self.start)

    def contains(self, value: float) -> bool:
        place = self.at(value)
        return min(self.start, self.end) <= place <= max(self.start, self.end)

    def ticks(self) -> list[float]:
        """Return up to about six round values."""
        span = self.high - self.low
        size = 10 ** math.floor(math.log10(span / 5))
        size = next(size * k for k in (1, 2, 5, 10) if span / (size * k) <= 6)
        size = max(size, 1.0) if self.log else size
        first = math.ceil(self.low / size - 1e-9)
        places = [k * size for k in range(first, math.floor(self.high / size + 1e-9) + 1)]
        if not self.log:
            return places
        return [10**place for place in places] or [10**self.low, 10**self.high]


def _axes(xs: _Axis, ys: _Axis) -> list[str]:
    parts = []
    for x in xs.ticks():
        parts.append(_rule(xs.at(x), _TOP, xs.at(x), _HEIGHT - BOTTOM))
        parts.append(text(xs.at(x), _HEIGHT - BOTTOM + 14, f"{x:.3g}", "middle"))
    for y in ys.ticks():
        parts.append(_rule(LEFT, ys.at(y), WIDTH - RIGHT, ys.at(y)))
        parts.append(text(LEFT - 5, ys.at(y) + 4, f"{y:.3g}", "end"))
    return parts


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        'stroke="currentColor" stroke-opacity="0.15"/>'
    )


def _mark(xs: _Axis, x: float, label: str) -> str:
    at = xs.at(x)
    return (
        f'<line x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{_HEIGHT - BOTTOM}" '
        'stroke="currentColor" stroke-opacity="0.6" stroke-dasharray="2 3"/>'
        + text(at, _TOP - 3, label, "end" if at > 0.8 * WIDTH else "start")
    )


def _stroke(commands: str, line: Line, opacity: float) -> str:
    dashes = ' stroke-dasharray="6 4"' if line.dashed else ""
    return (
        f'<path d="{commands}" fill="none" stroke="{line.colour}" '
        f'stroke-width="{line.width:g}" stroke-opacity="{opacity:g}"{dashes}/>'
    )


def _track(x: Sequence[float], y: Sequence[float], xs: _Axis, ys: _Axis) -> str:
    """Return the commands of a path that begins anew after each gap."""
    commands, pen_down = [], False
    for a, b in zip(x, y, strict=True):
        across, up = xs.at(float(a)), ys.at(float(b))
        if math.isnan(across) or math.isnan(up):
            pen_down = False
        else:
            commands.append(f"{'L' if pen_down else 'M'}{across:.1f} {up:.1f}")
            pen_down = True
    return "".join(commands)


def _band(line: Line, xs: _Axis, ys: _Axis) -> str:
    assert line.band is not None
    rows = zip(line.x, *line.band, strict=True)
    places = [(xs.at(float(x)), ys.at(float(low)), ys.at(float(high))) for x, low, high in rows]
    known = [place for place in places if not any(map(math.isnan, place))]
    there = [f"{x:.1f},{low:.1f}" for x, low, _ in known]
    back = [f"{x:.1f},{high:.1f}" for x, _, high in reversed(known)]
    return f'<polygon points="{" ".join(there + back)}" fill="{line.colour}" fill-opacity="0.18"/>'


def _legend(line: Line, y: int) -> str:
    sample = f"M{LEFT:.1f} {y:.1f}L{LEFT + 22:.1f} {y:.1f}"
    return _stroke(sample, line, 1.0) + text(LEFT + 28, y + 4, line.label, "start")
