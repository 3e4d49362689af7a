"""Results as what records hold: numbers for charts and tables, and the words about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_landscape.measures.breakdown import GradientBreakdown
from lightning_landscape.measures.line import LineScore, compare_ends, rise_stderr
from lightning_landscape.measures.quantiles import median_interval
from lightning_landscape.measures.slices import Slice
from lightning_landscape.measures.steps import StepSizes
from lightning_landscape.measures.survey import Survey
from lightning_landscape.measures.words import (
    UNITS,
    describe_line,
    describe_survey,
    family_verdict,
    is_resolved,
)
from lightning_landscape.measures.words_answers import judge_step

if TYPE_CHECKING:
    from lightning_landscape.reporting.output import Output

_MEDIANS = ("area", "area_corrected", "ratio", "rise_radius")


def family_data(found: Survey) -> dict[str, Any]:
    """Return what a record of one family holds.

    `slices` are means over the batches, `[n_directions, n_points]`; `median`, `low` and `high` are
    the median direction and its 95 % interval at each alpha. Scores are `[median, low, high]`.
    """
    first = found.slices[0]
    return {
        "alphas": first.alphas,
        **_directions(found.slices),
        "validation": _directions(found.validation) if found.validation else None,
        "n_batches": first.losses.shape[1],
        "mode": first.mode,
        "unit": UNITS.get(found.normalize, found.normalize),
        "rate": found.rate,
        **{name: getattr(found, name) for name in _MEDIANS},
        "areas": [score.area for score in found.scores],
        "verdicts": [score.verdict for score in found.scores],
        "verdict": family_verdict(found),
        "words": describe_survey(found),
    }


def line_data(train: Slice, validation: Slice | None = None) -> dict[str, Any]:
    """Return what a record of the line to an average holds.

    Each set of batches has `mean` and `stderr`, `[n_points]`, over its batches, `rise_stderr`, that
    of the rise above 0, its `score`, and the `verdict` on its gap: `"lower"`, `"higher"` or
    `"no verdict"`.

    Args:
        train: The line on train batches.
        validation: The line on validation batches, if there are any.
    """
    score = compare_ends(train)
    validated = None if validation is None else compare_ends(validation)
    confidence = 0.95 if validation is None else 0.975  # as in the words
    return {
        "alphas": train.alphas,
        "train": _line(train, score, confidence),
        "validation": validation and validated and _line(validation, validated, confidence),
        "mode": train.mode,
        "words": describe_line(score, validated),
    }


def breakdown_data(
    found: GradientBreakdown, sizes: StepSizes | None = None, *, mode: str = ""
) -> dict[str, Any]:
    """Return what a record of a gradient breakdown holds: its fields, and those of the step.

    Args:
        found: What was measured along one direction.
        sizes: How large the step was, layer by layer.
        mode: How the network was run.
    """
    step = None if sizes is None else sizes.to_dict()
    data = {**found.to_dict(), "step": step, "mode": mode, "words": found.summary()}
    if 1 in found.etas.tolist():  # a whole step
        data["answer"] = judge_step(found.break_even, float(found.etas[-1]))
    return data


def plane_data(
    alphas1: Tensor,
    alphas2: Tensor,
    losses: Tensor,
    *,
    points: Mapping[str, Sequence[float]],
    mode: str,
    unit: str,
    words: str,
) -> dict[str, Any]:
    """Return what a record of a plane holds: the loss at each point, and where its points lie.

    Args:
        alphas1: Where along the first axis, `[n1]`.
        alphas2: Where along the second, `[n2]`.
        losses: `[n1, n2, n_batches]`; their mean over the batches is kept.
        points: Where the points that it goes through lie, by name.
        mode: How the network was run.
        unit: What the axes are measured in.
        words: What it shows.
    """
    return {
        "alphas1": alphas1,
        "alphas2": alphas2,
        "mean": losses.mean(dim=2),
        "n_batches": losses.shape[2],
        "points": {name: list(place) for name, place in points.items()},
        "mode": mode,
        "unit": unit,
        "words": words,
    }


def record_surveys(
    output: Output, surveys: Mapping[str, Survey], line: Sequence[Slice], cost: Mapping[str, float]
) -> None:
    """Write the records of one probe: each family, the line to the average, and what it cost.

    Args:
        output: Where to.
        surveys: What was found, by family.
        line: The line to the average on train batches, then on validation batches; empty without.
        cost: `seconds`, and what else is known.
    """
    for family, found in surveys.items():
        output.record("family", family, family_data(found))
    if line:
        output.record("line", "swa", line_data(*line))
    output.record("cost", "probe", cost)


def _directions(slices: Sequence[Slice]) -> dict[str, Any]:
    means = [line.mean.tolist() for line in slices]
    columns = [median_interval(column) for column in zip(*means, strict=True)]
    middle, low, high = zip(*columns, strict=True)
    n_nonfinite = sum(line.n_nonfinite for line in slices)
    return {
        "slices": means,
        "median": middle,
        "low": low,
        "high": high,
        "n_nonfinite": n_nonfinite,
    }


def _line(line: Slice, score: LineScore, confidence: float) -> dict[str, Any]:
    n = line.losses.shape[1]
    stderr = line.losses.std(dim=1) / math.sqrt(n) if n > 1 else [math.nan] * len(line.alphas)
    verdict = "no verdict"
    if is_resolved(score.gap, score.gap_stderr, n, confidence):
        verdict = "lower" if score.gap < 0 else "higher"
    score_numbers = score.to_dict()
    return {
        "mean": line.mean,
        "stderr": stderr,
        "rise_stderr": rise_stderr(line),
        "n_batches": n,
        "score": score_numbers,
        "verdict": verdict,
    }
