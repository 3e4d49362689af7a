"""What `analyze` found, in one object: numbers, words, figures, a file and a page."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from lightning_landscape.measures.breakdown import GradientBreakdown
from lightning_landscape.measures.line import LineScore
from lightning_landscape.measures.slices import Slice
from lightning_landscape.measures.survey import Survey, survey_of
from lightning_landscape.measures.words import describe_surveys
from lightning_landscape.measures.words_answers import answer_valley
from lightning_landscape.measures.words_line import describe_line
from lightning_landscape.reporting.arrays import (
    npz_content,
    read_arrays,
    unpack_slices,
    written_by,
)
from lightning_landscape.reporting.figures_asymmetry import plot_line, plot_survey
from lightning_landscape.reporting.figures_breakdown import plot_breakdown
from lightning_landscape.reporting.files import write_whole
from lightning_landscape.reporting.html import frame, page
from lightning_landscape.reporting.records import Record
from lightning_landscape.reporting.results import breakdown_data, line_data, probe_data
from lightning_landscape.reporting.style import Figure

_VERSION = 1  # of the file; a reader refuses a newer one
_SETTINGS = ("module", "mode", "seed", "normalize", "n_evaluations", "seconds")


@dataclass(frozen=True, eq=False)
class Line(LineScore):
    """The score of a line between two sets of weights, with the losses it is of.

    Attributes:
        slice: The losses along the line.
        validation: The same line on validation batches, if there were any.
    """

    slice: Slice
    validation: Line | None = None

    @classmethod
    def of(cls, score: LineScore, slice: Slice, validation: Line | None = None) -> Line:
        """Return a score together with its slice."""
        return cls(**asdict(score), slice=slice, validation=validation)

    @property
    def score(self) -> LineScore:
        """The score alone."""
        return LineScore(**{f.name: getattr(self, f.name) for f in fields(LineScore)})

    def _repr_html_(self) -> str:
        return frame({"line": [Record("line", "line", 0, line_data(*_slices_of(self)))]})

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, lists and strings."""
        return {
            **self.score.to_dict(),
            "slice": self.slice.to_dict(),
            "validation": self.validation.to_dict() if self.validation else None,
        }


@dataclass(frozen=True, eq=False)
class Report:
    """What was measured around one set of weights.

    Attributes:
        families: What each family of random directions showed, by name.
        line: The line to other weights, if `toward` was given.
        breakdown: How much the gradient changes along itself, with `breakdown=True`.
        module: The class of the module.
        mode: How the network was run.
        seed: Seed of the directions and of the random numbers inside evaluations.
        normalize: The length of the directions, see `sample_direction`.
        n_evaluations: Passes over all the batches that were made.
        seconds: Seconds that the measurements took, without copying the batches.
    """

    families: dict[str, Survey]
    line: Line | None = None
    breakdown: GradientBreakdown | None = None
    module: str = ""
    mode: str = "train"
    seed: int = 0
    normalize: str = "filter"
    n_evaluations: int = 0
    seconds: float = 0.0

    def summary(self) -> str:
        """Return in words what was measured, with intervals; "no verdict" where there is none."""
        lines = [f"{self.module}, {self._head()}"]
        if self.families:
            lines.append(describe_surveys(self.families))
        if self.line:
            lines.append(describe_line(self.line, self.line.validation))
        if self.breakdown:
            lines.append(self.breakdown.summary())
        return "\n".join(lines)

    def _head(self) -> str:
        lines = [f"{self.mode} mode, seed {self.seed}."]
        if self.families:
            lines.append(answer_valley(self.families))
        return "\n".join(lines)

    def figures(self) -> dict[str, Figure]:
        """Return one figure per family, by name, and those of the line and the breakdown."""
        figures = {name: plot_survey(found) for name, found in self.families.items()}
        if self.line:
            figures["line"] = plot_line(*_slices_of(self.line))
        if self.breakdown:
            figures["breakdown"] = plot_breakdown("gradient", self.breakdown, mode=self.mode)
        return figures

    def records(self) -> list[Record]:
        """Return everything as records, the form that the page and the viewer take."""
        kinds: list[tuple[str, str, dict[str, Any]]] = [
            ("words", "summary", {"text": self._head()}),
            ("cost", "probe", {"seconds": self.seconds}),
        ]
        kinds += probe_data(self.families, _slices_of(self.line), "line")
        if self.breakdown:
            kinds.append(("breakdown", "gradient", breakdown_data(self.breakdown, mode=self.mode)))
        return [Record(kind, name, 0, data) for kind, name, data in kinds]

    def to_html(self, path: str | Path) -> None:
        """Write one page for the browser that works without JavaScript and without a network.

        Raises:
            OSError: If the file cannot be written.
        """
        name = self.module or "module"
        Path(path).write_text(page({name: self.records()}, title=f"Loss landscape of {name}"))

    def _repr_html_(self) -> str:
        return frame({self.module or "module": self.records()})

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, lists and strings."""
        return {
            **self._settings(),
            "families": {name: found.to_dict() for name, found in self.families.items()},
            "line": self.line.to_dict() if self.line else None,
            "breakdown": self.breakdown.to_dict() if self.breakdown else None,
        }

    def save(self, path: str | Path) -> None:
        """Write everything to one `.npz` file, without pickle; all of it or nothing.

        Raises:
            OSError: If the file cannot be written.
        """
        arrays: dict[str, np.ndarray] = {}
        for k, found in enumerate(self.families.values()):
            _pack(arrays, f"family{k}", found.slices)
            _pack(arrays, f"family{k}_validation", found.validation)
        names = ("line", "line_validation")
        for name, line in zip(names, _slices_of(self.line), strict=False):
            _pack(arrays, name, [line])
        head = {
            **self._settings(),
            "version": _VERSION,
            "families": [[name, found.rate] for name, found in self.families.items()],
            "line": _scores_of(self.line),
            "breakdown": self.breakdown.to_dict() if self.breakdown else None,
        }
        content = npz_content({"report": json.dumps(head), **arrays}, compressed=True)
        write_whole(Path(path), content)

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a report that `save` wrote.

        Raises:
            ValueError: If the file is missing, or holds something else.
        """
        with written_by("Report.save", path):
            arrays = read_arrays(path)
            head = json.loads(str(arrays["report"]))
        if head["version"] > _VERSION:
            raise ValueError(
                f"{path} was written by a newer version of lightning_landscape (file version "
                f"{head['version']}, known are up to {_VERSION}). Upgrade to read it."
            )
        families = {}
        for k, (name, rate) in enumerate(head["families"]):
            parts = (_unpack(arrays, f"family{k}{end}") for end in ("", "_validation"))
            families[name] = survey_of(name, *parts, normalize=head["normalize"], rate=rate)
        settings = {key: head[key] for key in _SETTINGS}
        changed = head["breakdown"] and GradientBreakdown.from_dict(head["breakdown"])
        return cls(families, _read_line(head["line"], arrays), changed, **settings)

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SETTINGS}


def _pack(arrays: dict[str, np.ndarray], name: str, slices: list[Slice]) -> None:
    if slices:
        arrays[f"{name}_alphas"] = slices[0].alphas.numpy()
        arrays[f"{name}_losses"] = np.stack([slice.losses.numpy() for slice in slices])
        arrays[f"{name}_distance"] = np.array([slice.distance for slice in slices])
        arrays[f"{name}_mode"] = np.array(slices[0].mode)
        arrays[f"{name}_label"] = np.array(slices[0].label)


def _unpack(arrays: dict[str, np.ndarray], name: str) -> list[Slice]:
    return unpack_slices(arrays, f"{name}_") if f"{name}_losses" in arrays else []


def _slices_of(line: Line | None) -> list[Slice]:
    """Return the slice of a line, and that of its validation batches."""
    return [line.slice, *_slices_of(line.validation)] if line else []


def _scores_of(line: Line | None) -> list[dict[str, Any]]:
    return [line.score.to_dict(), *_scores_of(line.validation)] if line else []


def _read_line(scores: list[dict[str, Any]], arrays: dict[str, np.ndarray]) -> Line | None:
    if not scores:
        return None
    slices = [*_unpack(arrays, "line"), *_unpack(arrays, "line_validation")]
    parts = [(LineScore(**score), slice) for score, slice in zip(scores, slices, strict=True)]
    validation = Line.of(*parts[1]) if len(parts) > 1 else None
    return Line.of(*parts[0], validation)
