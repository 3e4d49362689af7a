"""Results as scalars: functions from a result to numbers by relative tag."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_landscape.measures.breakdown import GradientBreakdown
from lightning_landscape.measures.line import LineScore
from lightning_landscape.measures.steps import StepSizes
from lightning_landscape.measures.survey import Survey


def family_scalars(found: Survey) -> dict[str, float]:
    """Return the scalars of one family of directions; `area*` and `ratio` are medians."""
    rate, (area, low, high) = found.rate, found.area
    values = {"rate": rate["rate"], "rate_low": rate["low"], "rate_high": rate["high"]}
    values |= {"area": area} | ({} if math.isnan(low) else {"area_low": low, "area_high": high})
    values |= {"area_corrected": found.area_corrected[0], "ratio": found.ratio[0]}
    values |= {"off_minimum": rate["off_minimum"]}
    return {f"{found.family}/{name}": value for name, value in values.items()}


def line_scalars(train: LineScore, validation: LineScore | None = None) -> dict[str, float]:
    """Return the scalars of the line to the average, on training and on validation batches."""
    names = ("distance", "gap", "minimum", "barrier", "outward_ratio")
    scalars = {f"swa/{name}": getattr(train, name) for name in names}
    if validation is None:
        return scalars
    scalars |= {f"swa/val/{name}": getattr(validation, name) for name in names}
    return scalars | {"swa/shift": validation.minimum - train.minimum}


def breakdown_scalars(direction: str, found: GradientBreakdown) -> dict[str, float]:
    """Return the scalars of one direction.

    `max`, `model`, `excess` and those of the layers are at the whole step, see `shown_column`;
    `descent_limit`, `break_even` and `trust_lr` are relative steps.
    """
    at = shown_column(found)
    breakdown = found.breakdown[:, at].tolist()
    scalars = {
        "max": _largest(breakdown),
        "model": float(found.model[at]),
        "excess": _largest(found.excess[:, at].tolist()),
        "descent_limit": found.descent_limit * found.relative_step,
        "break_even": found.break_even * found.relative_step,
        "trust_lr": found.trust_lr,
    }
    layers = zip(found.names, breakdown, strict=True)
    scalars |= {f"layer/{name}": value for name, value in layers}
    return {f"{direction}/{name}": value for name, value in scalars.items()}


def step_scalars(sizes: StepSizes, who: str = "") -> dict[str, float]:
    """Return the scalars of a step: the largest of its layers; the cosine farthest from 0.

    Args:
        sizes: Of the step.
        who: `"<optimizer>/"` where there are several.
    """
    updates, gradients, cosines = (
        own[~own.isnan()].tolist()
        for own in (sizes.relative_update, sizes.relative_gradient, sizes.weight_gradient_cosine)
    )
    scalars = {
        "relative_update": max(updates, default=math.nan),
        "relative_gradient": max(gradients, default=math.nan),
        "weight_gradient_cosine": max(cosines, key=abs, default=math.nan),
        "successive_cosine": sizes.successive_cosine,
    }
    return {f"{who}step/{name}": value for name, value in scalars.items()}


def shown_column(found: GradientBreakdown) -> int:
    """Return which eta stands for the whole step: 1 if it was measured, else the last."""
    whole = (found.etas == 1).nonzero()
    return int(whole[0]) if len(whole) else len(found.etas) - 1


def _largest(values: Sequence[float]) -> float:
    """Return the largest; nan if there is none or one is nan."""
    return max(values) if values and not any(map(math.isnan, values)) else math.nan
