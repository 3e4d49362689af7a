"""Results as scalars by relative tag, and as Markdown for TensorBoard's Text tab."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lightning_landscape.measures.breakdown import GradientBreakdown
from lightning_landscape.measures.line import LineScore
from lightning_landscape.measures.steps import StepSizes
from lightning_landscape.measures.survey import Survey
from lightning_landscape.measures.words_breakdown import shown_column


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


def as_markdown(text: str) -> str:
    """Return lines as paragraphs, which Markdown would otherwise join."""
    return text.replace("\n", "\n\n")


def breakdown_text(found: GradientBreakdown, sizes: StepSizes) -> str:
    """Return what was measured in words, and the layers in a table, as Markdown."""
    at = shown_column(found)
    eta = float(found.etas[at])
    measured = dict(zip(found.names, found.breakdown[:, at].tolist(), strict=True))
    head = ("layer", f"breakdown at eta = {eta:.3g}", "‖ΔW‖ / ‖W‖", "‖g‖ / ‖W‖", "cos(W, g)")
    columns = (sizes.relative_update, sizes.relative_gradient, sizes.weight_gradient_cosine)
    rows = [
        [f"`{name}`", f"{measured.get(name, math.nan):.3g}", *map("{:.3g}".format, row)]
        for name, row in zip(sizes.names, torch.stack(columns, dim=1).tolist(), strict=True)
    ]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    successive = (
        ""
        if math.isnan(sizes.successive_cosine)
        else f" The cosine between this step and the one before is {sizes.successive_cosine:.2g}."
    )
    return f"{found.summary()}{successive}\n\n{table}"


def _largest(values: Sequence[float]) -> float:
    """Return the largest; nan if there is none or one is nan."""
    return max(values) if values and not any(map(math.isnan, values)) else math.nan
