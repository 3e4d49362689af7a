"""Results in a notebook: the sentence, the numbers and a picture as HTML that needs no script."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_landscape.measures.quantiles import standard_error
from lightning_landscape.measures.words import describe_survey, number
from lightning_landscape.measures.words_line import describe_line
from lightning_landscape.svg import BLUE, ORANGE, Line, line_chart

if TYPE_CHECKING:
    from lightning_landscape.measures.asymmetry import AsymmetryScore
    from lightning_landscape.measures.breakdown import GradientBreakdown
    from lightning_landscape.measures.line import LineScore
    from lightning_landscape.measures.slices import Slice
    from lightning_landscape.measures.survey import Survey

_LAYERS = (132, 104, 204), (38, 150, 130), (190, 128, 20)  # the first, the middle, the last


def slice_html(line: Slice) -> str:
    """Return the losses along a line, with their standard error over the batches."""
    n, mean, band = line.losses.shape[1], line.mean, None
    if n > 1:
        error = standard_error(line.losses)
        band = (mean - error).tolist(), (mean + error).tolist()
    many = "es" if n > 1 else ""
    label = f"mean of {n} batch{many}" + (", ± 1 standard error" if band else "")
    chart = line_chart(
        [Line(line.alphas.tolist(), mean.tolist(), label, band=band)],
        x_label="alpha",
        y_label="loss",
        title="Loss along a line",
        marks=[(0.0, "current weights")],
    )
    what = f" along {line.label}" if line.label else ""
    gaps = f" Losses that are not finite, {line.n_nonfinite}, are gaps." if line.n_nonfinite else ""
    return _said(f"The loss{what} is least at alpha = {number(line.minimum)}.{gaps}") + chart


def score_html(score: AsymmetryScore) -> str:
    """Return what a score of one direction says, the rises of both sides, and its numbers."""
    rises = [score.rise_minus, 0.0, score.rise_plus]
    chart = line_chart(
        [Line([-1.0, 0.0, 1.0], rises, "rise of the loss at both ends")],
        x_label="alpha / radius",
        y_label="rise of the loss",
        title="Rise of the loss at both ends of the slice",
        marks=[(0.0, "current weights")],
    )
    area = f"{number(score.area)} ± {number(score.stderr, 2)}"
    said = f"This direction is {score.verdict}: its area is {area} (+1: the + side is steep)."
    return _said(said) + chart + _table(score.to_dict())


def line_score_html(score: LineScore) -> str:
    """Return what a line between two sets of weights says, its losses at both, and its numbers."""
    gap, error = score.gap, score.gap_stderr
    band = None if math.isnan(error) else ([0.0, gap - error], [0.0, gap + error])
    chart = line_chart(
        [Line([0.0, 1.0], [0.0, gap], "loss minus that of the current weights", band=band)],
        x_label="t along the line",
        y_label="difference of the loss",
        title="Loss at both ends of the line",
        marks=[(0.0, "current"), (1.0, "average")],
    )
    return _said(describe_line(score)) + chart + _table(score.to_dict())


def breakdown_html(found: GradientBreakdown) -> str:
    """Return how much each layer's gradient changes along a direction, beside the model."""
    rows = dict(zip(found.names, found.breakdown.tolist(), strict=True))
    return _said(found.summary()) + breakdown_chart(found.etas.tolist(), rows, found.model.tolist())


def breakdown_chart(
    etas: Sequence[float], rows: Mapping[str, Sequence[float]], model: Sequence[float]
) -> str:
    """Return the chart of a breakdown; the legend names the six layers that change most.

    Args:
        etas: The steps along the direction.
        rows: The breakdown of each layer at each eta, by name.
        model: What deep relative trust says of them.
    """
    largest = {name: max(filter(math.isfinite, row), default=0.0) for name, row in rows.items()}
    named = sorted(largest, key=lambda name: -largest[name])[:6]
    lines = [
        Line(
            etas, row, name if name in named else "", _layer_colour(k / max(len(rows) - 1, 1)), 1.6
        )
        for k, (name, row) in enumerate(rows.items())
    ]
    return line_chart(
        [*lines, Line(etas, model, "deep relative trust (model)", "#888", dashed=True)],
        x_label="eta: how far along the direction",
        y_label="change of the gradient, relative to its size",
        title="Gradient breakdown of each layer",
        log_x=True,
        log_y=True,
    )


def _layer_colour(share: float) -> str:
    """Return a colour from violet, 0, to ochre, 1; each has a contrast of 3 with white and dark."""
    k = min(int(2 * share), 1)
    ends = zip(_LAYERS[k], _LAYERS[k + 1], strict=True)
    return f"rgb({','.join(f'{a + (b - a) * (2 * share - k):.0f}' for a, b in ends)})"


def survey_html(found: Survey) -> str:
    """Return the slices along the directions of a family, and what they say."""
    lines = []
    kinds = (found.slices, BLUE, "train"), (found.validation, ORANGE, "validation")
    for slices, colour, name in kinds:
        for k, line in enumerate(slices):
            label = f"{len(slices)} directions, {name} batches" if k == 0 else ""
            lines.append(Line(line.alphas.tolist(), line.mean.tolist(), label, colour, 1.2, 0.6))
    chart = line_chart(
        lines,
        x_label="alpha",
        y_label="loss",
        title=f"Loss along the directions of {found.family}",
        marks=[(0.0, "current weights")],
    )
    return _said(f"{found.family}: {describe_survey(found)}") + chart


def _said(text: str) -> str:
    return "".join(f"<p>{html.escape(line)}</p>" for line in text.splitlines())


def _table(values: Mapping[str, float | int | str]) -> str:
    rows = []
    for name, value in values.items():
        shown = value if isinstance(value, str) else number(value)
        rows.append(f"<tr><th>{name}</th><td>{html.escape(shown)}</td></tr>")
    return f"<table>{''.join(rows)}</table>"
