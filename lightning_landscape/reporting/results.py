"""Results as what records hold: numbers for charts and tables, and the words about them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_landscape.measures.breakdown import GradientBreakdown
from lightning_landscape.measures.line import LineScore, compare_ends, rise_stderr
from lightning_landscape.measures.quantiles import median_interval, standard_error
from lightning_landscape.measures.slices import Slice
from lightning_landscape.measures.steps import StepSizes
from lightning_landscape.measures.survey import MEDIANS, Survey
from lightning_landscape.measures.words import (
    LEAST_BATCHES,
    UNITS,
    describe_survey,
    error_interval,
    family_verdict,
)
from lightning_landscape.measures.words_answers import judge_direction, judge_step
from lightning_landscape.measures.words_line import describe_line, gap_confidence, gap_verdict


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
        **{name: getattr(found, name) for name in MEDIANS},
        "areas": [score.area for score in found.scores],
        "verdicts": [score.verdict for score in found.scores],
        "verdict": family_verdict(found),
        "words": describe_survey(found),
    }


def line_data(train: Slice, validation: Slice | None = None) -> dict[str, Any]:
    """Return what a record of the line to an average holds.

    Each set of batches has `mean` and `stderr`, `[n_points]`, over its batches, `rise_stderr`, that
    of the rise above 0, its `score`, and the `verdict` on its gap: `"lower"`, `"higher"`,
    `"the same"` or `"no verdict"`, with the `interval` that decides it, in words; empty where
    there is none.

    Args:
        train: The line on train batches.
        validation: The line on validation batches, if there are any.
    """
    score = compare_ends(train)
    validated = None if validation is None else compare_ends(validation)
    return {
        "alphas": train.alphas,
        "train": _line(train, score, validated),
        "validation": validation and validated and _line(validation, validated, score),
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
        data["answer"] = judge_step(found)
    else:
        updates = [] if sizes is None else sizes.relative_update.tolist()
        data["answer"] = judge_direction(
            found, max(filter(math.isfinite, updates), default=math.nan)
        )
    return data


def probe_data(
    surveys: Mapping[str, Survey], line: Sequence[Slice], line_name: str = "swa"
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the kind, the name and the data of each record: of the families, and of the line.

    Args:
        surveys: What was found, by family.
        line: The line on train batches, then on validation batches; empty without.
        line_name: The name of the line.
    """
    for family, found in surveys.items():
        yield "family", family, family_data(found)
    if line:
        yield "line", line_name, line_data(*line)


def _directions(slices: Sequence[Slice]) -> dict[str, Any]:
    means = [line.mean.tolist() for line in slices]
    columns = [median_interval(column) for column in zip(*means, strict=True)]
    middle, low, high = zip(*columns, strict=True)
    n_nonfinite = sum(line.n_nonfinite for line in slices)
    medians = {"median": middle, "low": low, "high": high}
    return {"slices": means, **medians, "n_nonfinite": n_nonfinite}


def _line(line: Slice, score: LineScore, other: LineScore | None) -> dict[str, Any]:
    n, interval = line.losses.shape[1], ""
    if n >= LEAST_BATCHES and math.isfinite(score.gap):
        interval = error_interval(score.gap, score.gap_stderr, n, gap_confidence(other))
    return {
        "mean": line.mean,
        "stderr": standard_error(line.losses),
        "rise_stderr": rise_stderr(line),
        "n_batches": n,
        "score": score.to_dict(),
        "verdict": gap_verdict(score, other),
        "interval": interval,
    }
