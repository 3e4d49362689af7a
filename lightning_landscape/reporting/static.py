"""The last probe of a run as HTML that needs no script: words, tables and pictures."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lightning_landscape.measures.notebook import breakdown_chart
from lightning_landscape.reporting.records import Record, floats, latest
from lightning_landscape.reporting.svg_map import heat_map
from lightning_landscape.svg import BLUE, ORANGE, Line, line_chart


def describe(run: str, records: Sequence[Record]) -> str:
    """Return the latest record of each tag as words, a table and a picture.

    Args:
        run: The name of the run.
        records: Its records, in any order.
    """
    last = latest(records)
    parts = [
        f"<section><h3>{_title(title, record)}</h3>{_words(record)}{draw(record.data)}</section>"
        for kind, (title, draw) in _SECTIONS.items()
        for record in last
        if record.kind == kind
    ]
    said = [_words(record) for record in last if record.kind == "words"]
    return f"<article><h2>{html.escape(run)}</h2>{''.join(said + parts)}</article>"


def _title(title: str, record: Record) -> str:
    name = "" if record.name == record.kind else f": {html.escape(record.name)}"
    return f"{title}{name}" + (f", step {record.step}" if record.step else "")


def _words(record: Record) -> str:
    return "".join(f"<p>{html.escape(line)}</p>" for line in record.words.splitlines())


def _family(data: dict[str, Any]) -> str:
    rate, centre = data["rate"], data["median"][data["alphas"].index(0)]
    rows = [
        ("area, from -1 (- side steep) to +1 (+ side steep)", _interval(data["area"])),
        ("asymmetric directions", f"{_percent(rate['rate'])} of {_show(rate['n'])}, 95 % interval "
         f"{_percent(rate['low'])} to {_percent(rate['high'])}"),
        ("directions off their minimum", _percent(rate.get("off_minimum"))),
        ("unresolved directions", _percent(rate.get("unresolved"))),
        ("loss at the current weights", _show(centre)),
    ]  # fmt: skip
    if not math.isfinite(float(centre)):
        rows = [("loss at the current weights", "not finite")]
    alphas = data["alphas"]
    lines = [Line(alphas, floats(y), width=0.8, opacity=0.4) for y in data["slices"]]
    lines.append(_median(data, alphas, "median direction, with its 95 % interval", BLUE))
    if data.get("validation"):
        median = _median(data["validation"], alphas, "the same on validation batches", ORANGE)
        lines.append(median)
    chart = line_chart(
        lines,
        x_label=f"alpha, {data['unit']}" if data.get("unit") else "alpha",
        y_label="loss",
        title="Loss along random directions",
        marks=[(0.0, "current weights")],
    )
    return _table(rows) + chart


def _line(data: dict[str, Any]) -> str:
    sets = [(n, data[n]) for n in ("train", "validation") if data.get(n)]
    rows = [("distance to the average (L2)", _show(data["train"]["score"]["distance"]))]
    for name, part in sets:
        score = part["score"]
        gap = f"{_show(score['gap'], '+')} ± {_show(score['gap_stderr'])}"
        gap = gap if math.isfinite(float(score["gap"])) else "not finite"
        if interval := part.get("interval"):
            gap = f"{_show(score['gap'], '+')}, {interval}"
        rows.append((f"loss of the average minus current, {name}", gap))
        rows.append((f"lowest loss at t, {name}", _show(score["minimum"])))
    lines = [
        Line(data["alphas"], floats(part["mean"]), name, colour, band=_error_band(part))
        for (name, part), colour in zip(sets, (BLUE, ORANGE), strict=False)
    ]
    chart = line_chart(
        lines,
        x_label="t along the line",
        y_label="loss, ± 1 standard error",
        title="Loss on the line from the current weights to the average",
        marks=[(0.0, "current"), (1.0, "average")],
    )
    return _table(rows) + chart


def _breakdown(data: dict[str, Any]) -> str:
    unit = float(data["relative_step"])
    rows = [
        ("descent limit", _relative(data, data["descent_limit"])),
        ("break-even", _relative(data, data["break_even"])),
        ("trust_lr of deep relative trust (model)", _show(data["trust_lr"])),
    ]
    if 1 in data["etas"]:
        rows.insert(0, ("step measured (eta = 1), as a relative step", _show(unit)))
    layers = dict(zip(data["names"], map(floats, data["breakdown"]), strict=True))
    return _table(rows) + breakdown_chart(data["etas"], layers, floats(data["model"]))


def _plane(data: dict[str, Any]) -> str:
    values = [floats(column) for column in data["mean"]]
    known = sorted(value for column in values for value in column if math.isfinite(value))
    rows = [(f"at {name}", f"({_show(x)}, {_show(y)})") for name, (x, y) in _points(data).items()]
    if known:
        low, middle, high = known[0], known[len(known) // 2], known[-1]
        rows.append(("loss: least, median, largest", ", ".join(map(_show, (low, middle, high)))))
    unit = data.get("unit", "alpha")
    chart = heat_map(
        data["alphas1"],
        data["alphas2"],
        values,
        x_label=f"first axis, {unit}; colours: dark is low, equal shares of the points",
        y_label="second axis",
        title="Loss on a plane",
        points=_points(data),
    )
    return _table(rows) + chart


def _points(data: dict[str, Any]) -> dict[str, list[float]]:
    return {name: floats(place) for name, place in (data.get("points") or {}).items()}


# in this order
_SECTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "line": ("Line to the average", _line),
    "breakdown": ("Gradient breakdown", _breakdown),
    "family": ("Directions", _family),
    "plane": ("Plane", _plane),
}


def _median(part: dict[str, Any], alphas: list[float], label: str, colour: str) -> Line:
    band = (floats(part["low"]), floats(part["high"]))
    return Line(alphas, floats(part["median"]), label, colour, 2.4, band=band)


def _error_band(part: dict[str, Any]) -> tuple[list[float], list[float]]:
    both = list(zip(floats(part["mean"]), floats(part["stderr"]), strict=True))
    return [mean - error for mean, error in both], [mean + error for mean, error in both]


def _relative(data: dict[str, Any], eta: Any) -> str:
    unit = float(data["relative_step"])
    if math.isinf(float(eta)):
        return f"beyond {_show(data['etas'][-1] * unit)}"
    return _show(float(eta) * unit)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = (
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>'
        for name, value in rows
    )
    return f"<table>{''.join(lines)}</table>"


def _show(value: Any, sign: str = "") -> str:
    number = float(value)
    if math.isnan(number):
        return "not known"
    if math.isinf(number):
        return "inf" if number > 0 else "-inf"
    return f"{number:{sign}.3g}"


def _interval(values: Sequence[Any]) -> str:
    middle, low, high = floats(values)
    if math.isnan(low):
        return _two_digits(middle)
    return f"{_two_digits(middle)}, 95 % interval {_two_digits(low)} to {_two_digits(high)}"


def _two_digits(value: float) -> str:
    return "not known" if math.isnan(value) else f"{value:+.2f}"


def _percent(share: Any) -> str:
    return (
        "not known" if share is None or math.isnan(float(share)) else f"{100 * float(share):.0f} %"
    )
