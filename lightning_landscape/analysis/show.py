"""Print and write what was measured: words or JSON, a file of numbers, figures and a page."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_landscape.analysis.planes import Plane
from lightning_landscape.analysis.report import Line, Report
from lightning_landscape.measures.plane import PlaneBasis
from lightning_landscape.reporting.html import page
from lightning_landscape.reporting.records import Record, floats, latest
from lightning_landscape.reporting.runs import read_run
from lightning_landscape.reporting.style import Figure, png
from lightning_landscape.reporting.tags import written


def check_outputs(**paths: str | None) -> None:
    """Raise before anything is measured if a file cannot be written where it was asked for.

    Args:
        paths: By option; `figures` is a folder, all others are files.

    Raises:
        ValueError: If there is no such folder, or it is a file.

    Example:
        >>> check_outputs(html="/nowhere/page.html", save=None)
        Traceback (most recent call last):
            ...
        ValueError: --html must be a file in a folder that exists. There is no folder /nowhere.
    """
    for option, path in paths.items():
        if path is None:
            continue
        folder = Path(path).absolute().parent
        if option == "figures" and Path(path).is_file():
            raise ValueError(f"--figures must be a folder. {path} is a file.")
        if option != "figures" and not folder.is_dir():
            raise ValueError(
                f"--{option} must be a file in a folder that exists. There is no folder {folder}."
            )


@dataclass(frozen=True)
class Outputs:
    """What becomes of a result: it is printed, and written to the files that were asked for.

    Attributes:
        json: Whether all numbers are printed as JSON in the place of the words.
        html: A file for the page.
        save: A file for all numbers.
        figures: A folder for PNG files.
    """

    json: bool = False
    html: str | None = None
    save: str | None = None
    figures: str | None = None

    def put(
        self,
        result: Report | Plane,
        numbers: dict[str, Any],
        words: str,
        to_html: Callable[[str], object],
        figures: Callable[[], dict[str, Figure]],
    ) -> None:
        """Print a result, and write its files; page and figures are made if they are wanted."""
        print(as_plain_json(numbers) if self.json else words)
        if self.save is not None:
            result.save(self.save)
        if self.html is not None:
            to_html(self.html)
        if self.figures is not None:
            write_figures(figures(), self.figures)


def show_report(report: Report, outputs: Outputs) -> None:
    """Print a report, and write the files that were asked for."""
    outputs.put(report, report.to_dict(), report.summary(), report.to_html, report.figures)


def show_plane(plane: Plane, basis: PlaneBasis, names: list[str], outputs: Outputs) -> None:
    """Print what a plane shows, and write the files that were asked for."""
    points = dict(zip(names, basis.points.tolist(), strict=True))

    def to_html(path: str) -> None:
        Path(path).write_text(page({"plane": [plane.record(points)]}, title="Loss on a plane"))

    def figures() -> dict[str, Figure]:
        return {"plane": plane.figure(basis, names)}

    numbers = {**plane.to_dict(), "points": points}
    outputs.put(plane, numbers, plane.summary(points), to_html, figures)


def show_lines(lines: dict[str, Line], toward: str, *, as_json: bool = False) -> None:
    """Print the lines from several checkpoints to one: from when on is there no barrier?"""
    if as_json:
        print(as_plain_json({path: line.to_dict() for path, line in lines.items()}))
        return
    names = ("distance", "gap", "gap_stderr", "barrier", "sign_agreement")
    rows = [["", *names]]
    rows += [
        [path, *(f"{getattr(line, name):.3g}" for name in names)] for path, line in lines.items()
    ]
    print(f"The line from each checkpoint to {toward}, on training batches:\n{_aligned(rows)}")


def show_runs(
    folders: list[str], *, as_json: bool = False, html: str | None = None, words: bool = False
) -> None:
    """Print the last numbers of runs side by side, or what the monitors said; write a page.

    Raises:
        ValueError: If a folder holds no results of a monitor.
    """
    runs = {folder: read_run(folder)[0] for folder in folders}
    numbers = {folder: last_numbers(records) for folder, records in runs.items()}
    if as_json:
        print(as_plain_json(numbers))
    elif words:
        print("\n\n".join(last_words(records) for records in runs.values()))
    else:
        print(table(numbers))
    if html is not None:
        Path(html).write_text(page(runs))


def last_numbers(records: list[Record]) -> dict[str, list[float]]:
    """Return the last number of each kind, with its interval where it has one, by logged tag.

    They have the units of the scalars of these names: `descent_limit` and `break_even` are relative
    steps.
    """
    found: dict[str, list[float]] = {}
    for record in sorted(records, key=lambda record: record.step):
        data, name = record.data, written(f"{record.monitor}/{record.name}")
        if record.kind == "family":
            found[f"{name}/area"] = floats(data["area"])
            rate = data["rate"]
            found[f"{name}/rate"] = floats(rate[key] for key in ("rate", "low", "high"))
        elif record.kind == "line":
            for kind, place in (("train", ""), ("validation", "val/")):
                if data.get(kind):
                    found[f"{name}/{place}gap"] = floats([data[kind]["score"]["gap"]])
        elif record.kind == "breakdown":
            (unit,) = floats([data["relative_step"]])
            for key in ("descent_limit", "break_even"):
                found[f"{name}/{key}"] = [unit * eta for eta in floats([data[key]])]
    return found


def last_words(records: list[Record]) -> str:
    """Return what the last record of each tag says in words, after what monitors said themselves.

    Example:
        >>> record = Record("words", "summary", 7, {"text": "All is well."})
        >>> print(last_words([record]))
        At step 7, summary: All is well.
    """
    said = [
        f"At step {record.step}, {record.name}: {record.words}"
        for record in sorted(latest(records), key=lambda record: record.kind != "words")
        if record.words
    ]
    return "\n\n".join(said) or "The monitors of this run said nothing in words."


def table(columns: dict[str, dict[str, list[float]]]) -> str:
    """Return numbers of several runs as a table, one row per number.

    Example:
        >>> print(table({"a": {"area": [0.5, 0.25, 1.0]}, "b": {"area": [0.0]}}))
                          a  b
        area  0.5 [0.25, 1]  0
    """
    names = sorted({name for column in columns.values() for name in column})
    rows = [["", *columns]]
    rows += [[name, *(_cell(column.get(name)) for column in columns.values())] for name in names]
    return _aligned(rows)


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    )


def _cell(numbers: list[float] | None) -> str:
    if numbers is None:
        return "-"
    value, *interval = [f"{number:.3g}" for number in numbers]
    return f"{value} [{', '.join(interval)}]" if interval else value


def write_figures(figures: dict[str, Figure], folder: str) -> None:
    """Write figures as PNG files, `@` and `/` of their names written `-`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        file = name.replace("@", "-").replace("/", "-")
        Path(folder, f"{file}.png").write_bytes(png(figure))


def one_line(error: Exception) -> str:
    """Return an error as one sentence."""
    text = " ".join(str(error).split()) or "no reason was given"
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def as_plain_json(value: Any) -> str:
    """Return JSON that every reader takes: numbers that are not finite are words.

    Example:
        >>> as_plain_json({"gap": float("nan"), "losses": [1.0, float("inf")]})
        '{"gap": "nan", "losses": [1.0, "inf"]}'
    """
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(child) for child in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
