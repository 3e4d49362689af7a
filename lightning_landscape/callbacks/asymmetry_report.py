"""What a probe of AsymmetryMonitor found, as scalars, arrays and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_landscape.measures.line import LineScore, compare_ends
from lightning_landscape.measures.slices import Slice
from lightning_landscape.measures.survey import Survey
from lightning_landscape.measures.words import describe_surveys
from lightning_landscape.measures.words_answers import answer_valley
from lightning_landscape.reporting.figures_asymmetry import plot_history, plot_line, plot_survey
from lightning_landscape.reporting.output import Output
from lightning_landscape.reporting.scalars import family_scalars, line_scalars

# of each family the step of every probe, and the median rise at each alpha, `[n_points]`
SliceHistory: TypeAlias = dict[str, list[tuple[int, Tensor]]]

# what loggers get of a family, of the line and of the cost without `details`
_FEW = {"rate", "rate_low", "rate_high", "area", "area_low", "area_high", "n_directions"}
_FEW |= {"gap", "overhead"}


def is_one_of_few(tag: str) -> bool:
    """Return whether loggers get the number of this relative tag without `details`."""
    return tag.rpartition("/")[2] in _FEW and tag != "swa/val/gap"  # `swa/<metric>` is of all data


@dataclass(frozen=True)
class LandscapeProbe:
    """What one probe measured.

    Attributes:
        step: The training step.
        surveys: The survey of each family.
        line: The line to the average: `[train]`, `[train, validation]`, or empty.
    """

    step: int
    surveys: dict[str, Survey]
    line: list[Slice]

    @property
    def line_scores(self) -> list[LineScore]:
        """The score of each of `line`."""
        return [compare_ends(part) for part in self.line]

    def describe(self) -> str:
        """Return in words what was measured along the families."""
        if not self.surveys:
            return ""
        found = describe_surveys(self.surveys)
        return f"{answer_valley(self.surveys)}\nAt step {self.step}:\n{found}"

    def scalars(self, *, with_number: bool) -> dict[str, float]:
        """Return the numbers by relative tag; `n_directions` too where it is no setting."""
        scalars: dict[str, float] = {}
        for family, found in self.surveys.items():
            scalars |= family_scalars(found)
            if with_number:
                scalars[f"{family}/n_directions"] = found.rate["n"]
        return scalars | (line_scalars(*self.line_scores) if self.line else {})


def add_rises(history: SliceHistory, probe: LandscapeProbe) -> None:
    """Add how far the loss rises at each alpha: of each family the median over its slices."""
    for family, found in probe.surveys.items():
        means = torch.stack([line.mean for line in found.slices])
        rises = means - means[:, means.shape[1] // 2, None]
        history.setdefault(family, []).append((probe.step, rises.nanmedian(dim=0).values))


def state_of(history: SliceHistory) -> dict[str, dict[str, Any]]:
    """Return a history as a checkpoint can hold it."""
    return {
        family: {
            "steps": [step for step, _ in rows],
            "rises": torch.stack([rises for _, rises in rows]),
        }
        for family, rows in history.items()
    }


def history_of(state: Mapping[str, Mapping[str, Any]]) -> SliceHistory:
    """Return the history that a checkpoint held."""
    return {
        family: list(zip(rows["steps"], rows["rises"], strict=True))
        for family, rows in state.items()
    }


def plot_probe(
    output: Output, probe: LandscapeProbe, history: SliceHistory, alphas: Tensor
) -> None:
    """Plot the slices of each family and their history, and the line.

    Args:
        output: The output for the figures.
        probe: What was found.
        history: What was found so far, with this probe.
        alphas: The grid of the slices.
    """
    for family, found in probe.surveys.items():
        output.figure(family, partial(plot_survey, found, step=probe.step))
        steps, rises = zip(*history[family], strict=True)
        over_time = partial(plot_history, family, steps, alphas, torch.stack(rises))
        output.figure(f"history/{family}", over_time)
    if probe.line:
        output.figure("swa/line", partial(plot_line, *probe.line, step=probe.step))
