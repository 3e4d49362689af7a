"""Results as Markdown, for TensorBoard's Text tab."""

from __future__ import annotations

import math

import torch

from lightning_landscape.measures.breakdown import GradientBreakdown
from lightning_landscape.measures.steps import StepSizes
from lightning_landscape.reporting.scalars import shown_column


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
