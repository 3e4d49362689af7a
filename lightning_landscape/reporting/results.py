"""Results as records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_landscape.measures.asymmetry import AsymmetryScore
from lightning_landscape.measures.breakdown import GradientBreakdown
from lightning_landscape.measures.line import LineScore
from lightning_landscape.measures.rates import median_interval
from lightning_landscape.measures.slices import Slice
from lightning_landscape.measures.steps import StepSizes

_MEDIANS = ("area", "area_corrected", "ratio", "rise_radius")


def family_data(
    slices: Sequence[Slice],
    scores: Sequence[AsymmetryScore],
    rate: Mapping[str, Any],
    *,
    validation: Sequence[Slice] = (),
    unit: str = "",
    words: str = "",
) -> dict[str, Any]:
    """Return what a record of one family holds.

    Slices are means over the batches, `[n_directions, n_points]`; `median`, `low` and `high` are
    the median direction and its 95 % interval at each alpha. Scores are `[median, low, high]`.

    Args:
        slices: One slice a direction, on one grid.
        scores: Their scores.
        rate: What `AsymmetryRate.compute` gives, and shares beside it.
        validation: The same directions on validation batches, if there are any.
        unit: What alpha is measured in, for people.
        words: What it says, in a sentence or more.
    """
    names = [name for name in _MEDIANS if scores and hasattr(scores[0], name)]
    return {
        "alphas": slices[0].alphas,
        **_directions(slices),
        "validation": _directions(validation) if validation else None,
        "n_batches": slices[0].losses.shape[1],
        "mode": slices[0].mode,
        "unit": unit,
        "rate": {name: float(value) for name, value in rate.items()},
        **{name: median_interval([getattr(s, name) for s in scores]) for name in names},
        "areas": [score.area for score in scores],
        "verdicts": [score.verdict for score in scores],
        "words": words,
    }


def line_data(
    train: Slice,
    score: LineScore,
    *,
    validation: Slice | None = None,
    validation_score: LineScore | None = None,
    words: str = "",
) -> dict[str, Any]:
    """Return what a record of the line to an average holds.

    Each set of batches has `mean` and `stderr`, `[n_points]`, over its batches, its `score`, and
    the `verdict` on its gap: `"lower"`, `"higher"` or `""`.

    Args:
        train: The line on train batches.
        score: Its score.
        validation: The line on validation batches, if there are any.
        validation_score: Its score.
        words: What it says, in a sentence or more.
    """
    validated = None
    if validation is not None and validation_score is not None:
        validated = _line(validation, validation_score)
    return {
        "alphas": train.alphas,
        "train": _line(train, score),
        "validation": validated,
        "mode": train.mode,
        "words": words,
    }


def breakdown_data(
    found: GradientBreakdown, sizes: StepSizes | None = None, *, mode: str = "", words: str = ""
) -> dict[str, Any]:
    """Return what a record of a gradient breakdown holds: its fields, and those of the step.

    Args:
        found: What was measured along one direction.
        sizes: How large the step was, layer by layer.
        mode: How the network was run.
        words: What it says, in a sentence or more.
    """
    step = None if sizes is None else sizes.to_dict()
    return {**found.to_dict(), "step": step, "mode": mode, "words": words}


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


def _line(line: Slice, score: LineScore) -> dict[str, Any]:
    n = line.losses.shape[1]
    stderr = line.losses.std(dim=1) / math.sqrt(n) if n > 1 else [math.nan] * len(line.alphas)
    return {
        "mean": line.mean,
        "stderr": stderr,
        "n_batches": n,
        "score": score.to_dict(),
        "verdict": _verdict(score),
    }


def _verdict(score: LineScore) -> str:
    """Return whether the average has a `"lower"` or `"higher"` loss, or `""` for no verdict."""
    if not abs(score.gap) >= 2 * score.gap_stderr:
        return ""
    return "lower" if score.gap < 0 else "higher" if score.gap > 0 else ""
