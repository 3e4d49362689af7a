"""What a probe of GradientBreakdownMonitor found, its history, and its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from lightning_landscape.measures.breakdown import GradientBreakdown, critical_rate
from lightning_landscape.measures.steps import StepSizes
from lightning_landscape.measures.words_answers import answer_step
from lightning_landscape.measures.words_breakdown import (
    describe_breakdown,
    describe_critical_rate,
    describe_successive_steps,
    shown_column,
)
from lightning_landscape.reporting.figures_breakdown import plot_breakdown, plot_breakdown_history
from lightning_landscape.reporting.output import Output
from lightning_landscape.reporting.scalars import breakdown_scalars, step_scalars

_OF_LATE = 20  # probes whose successive cosines are told


@dataclass(frozen=True)
class StepReport:
    """What was found along one direction for one optimizer, `""` or `"<name>/"`."""

    step: int
    who: str
    direction: str
    found: GradientBreakdown
    sizes: StepSizes
    rate: float  # in use; nan where the step is not proportional to it

    @property
    def label(self) -> str:
        """What tags, figures and files call it."""
        return f"{self.who}{self.direction}"

    @property
    def critical_rate(self) -> float:
        """The rate above which the step would have raised the loss; nan but for updates."""
        known = self.direction == "update" and 0 < self.rate < math.inf
        return critical_rate(self.rate, self.found) if known else math.nan

    def scalars(self, *, layers: bool) -> dict[str, float]:
        """Return the numbers by relative tag."""
        scalars = breakdown_scalars(self.label, self.found)
        if not layers:
            scalars = {tag: v for tag, v in scalars.items() if "/layer/" not in tag}
        if not math.isnan(self.critical_rate):
            scalars |= {
                f"{self.label}/critical_rate": self.critical_rate,
                f"{self.label}/learning_rate": self.rate,
            }
        return scalars | step_scalars(self.sizes, self.who)


@dataclass
class StepHistory:
    """What was found at each probe of a training, by label.

    Attributes:
        breakdown: The step, and the breakdown of each layer.
        rates: The step, the learning rate in use, and the critical one.
        cosines: Of each optimizer, the step and its cosine with the one before.
    """

    breakdown: dict[str, list[tuple[int, dict[str, float]]]] = field(default_factory=dict)
    rates: dict[str, list[tuple[int, float, float]]] = field(default_factory=dict)
    cosines: dict[str, dict[int, float]] = field(default_factory=dict)

    def add(self, report: StepReport) -> None:
        """Add what a probe found."""
        found = report.found
        values = found.breakdown[:, shown_column(found)].tolist()
        rows = self.breakdown.setdefault(report.label, [])
        rows.append((report.step, dict(zip(found.names, values, strict=True))))
        self.cosines.setdefault(report.who, {})[report.step] = report.sizes.successive_cosine
        if not math.isnan(report.critical_rate):
            rates = self.rates.setdefault(report.label, [])
            rates.append((report.step, report.rate, report.critical_rate))

    def state_dict(self) -> dict[str, Any]:
        """Return it as a checkpoint can hold it."""
        history = {
            name: {"steps": [step for step, _ in rows], "breakdown": [row for _, row in rows]}
            for name, rows in self.breakdown.items()
        }
        rates = {name: [list(row) for row in rows] for name, rows in self.rates.items()}
        cosines = {who: list(rows.items()) for who, rows in self.cosines.items()}
        return {"history": history, "rates": rates, "cosines": cosines}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; what it lacks starts anew."""
        self.breakdown = {
            name: list(zip(rows["steps"], rows["breakdown"], strict=True))
            for name, rows in state.get("history", {}).items()
        }
        self.rates = {
            name: [(int(step), rate, critical) for step, rate, critical in rows]
            for name, rows in state.get("rates", {}).items()
        }
        self.cosines = {
            who: {int(step): cosine for step, cosine in rows}
            for who, rows in state.get("cosines", {}).items()
        }


def describe_steps(reports: Sequence[StepReport], history: StepHistory) -> str:
    """Return in words what the last probe measured, and if recent steps undid each other."""
    lines = [
        f"{_whose(report.who)}{answer_step(report.found)}"
        for report in reports
        if report.direction == "update"
    ]
    lines.append(f"The step before training step {reports[0].step}, on its own batch:")
    for report in reports:
        lines.append(f"{report.label}: {describe_breakdown(report.found)}")
        if not math.isnan(report.critical_rate):
            step, uphill = report.step, report.found.slope_start >= 0
            rates = report.rate, report.critical_rate
            lines.append(describe_critical_rate(*rates, step=step, uphill=uphill))
    for who, cosines in history.cosines.items():
        of_late = list(cosines.values())[-_OF_LATE:]
        lines.append(f"{_whose(who)}{describe_successive_steps(of_late)}")
    return "\n".join(lines)


def _whose(who: str) -> str:
    return f"{who.rstrip('/')}: " if who else ""


def plot_step(
    output: Output, report: StepReport, history: StepHistory, layers: Sequence[str], *, mode: str
) -> None:
    """Plot the breakdown along one direction, and its history over the layers in this order."""
    label, found, rows = report.label, report.found, history.breakdown[report.label]
    output.figure(label, partial(plot_breakdown, label, found, mode=mode, step=report.step))
    layers = [name for name in layers if any(name in row for _, row in rows)]
    values = torch.tensor([[row.get(name, math.nan) for name in layers] for _, row in rows])
    steps, eta = [step for step, _ in rows], float(found.etas[shown_column(found)])
    output.figure(
        f"history/{label}", partial(plot_breakdown_history, label, steps, layers, values, eta=eta)
    )
