"""The line between two sets of weights: which end is lower, and which is on the flat side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from lightning_landscape.measures.notebook import line_score_html
from lightning_landscape.measures.quantiles import standard_error
from lightning_landscape.measures.slices import (
    Slice,
    evaluate_slice,
    grid_index,
    joins_two_ends,
    line_grid,
    on_grid,
    split_batches,
)
from lightning_landscape.objective import Objective
from lightning_landscape.params import Params, difference

__all__ = ["LineScore", "compare_ends"]


@dataclass(frozen=True)
class LineScore:
    """The line from one set of weights (`t = 0`) to another (`t = 1`). Losses in their own unit.

    Attributes:
        distance: L2 norm between the two.
        gap: `L(1) - L(0)`.
        gap_stderr: Standard error of `gap` over the batches, paired; nan for one batch.
        n_batches: Number of batches.
        minimum: The grid `t` of the least finite loss; nan where that is an end of the grid, for
            the loss may be lower beyond.
        barrier: Max over grid points in [0, 1] of `L(t) - ((1 - t) L(0) + t L(1))`, at least 0.
        rise_behind: `L(-k) - L(0)` at the start of the grid, `k` its overhang.
        rise_beyond: `L(1 + k) - L(1)` at its end.
        outward_ratio: `rise_behind / rise_beyond`; above 1 the second set of weights is on the flat
            side. nan unless both are positive.
        outward_ratio_near: The same at `t = -1` and `t = 2`, linear between grid points; nan if
            they are beyond the grid. The two often disagree: a side is named flat only if both
            agree.
        outward_stderr: Standard error of `rise_behind - rise_beyond` over the batches, paired; nan
            for one batch.
        sign_agreement: Share of the weights that have the same sign at both ends; nan if unknown.
    """

    distance: float
    gap: float
    gap_stderr: float
    n_batches: int
    minimum: float
    barrier: float
    rise_behind: float
    rise_beyond: float
    outward_ratio: float
    outward_ratio_near: float
    outward_stderr: float
    sign_agreement: float

    def _repr_html_(self) -> str:
        return line_score_html(self)

    def to_dict(self) -> dict[str, float]:
        """Return everything as plain numbers."""
        return asdict(self)


LINE = line_grid(4.0)
"""Where a line to other weights is evaluated; with an overhang of 2 its ratio is noisier."""


def evaluate_line(
    objective: Objective, to: Params, validation: Sequence[bool], *, label: str
) -> list[Slice]:
    """Return the line to other weights: `[train]`, or `[train, validation]`.

    Args:
        objective: The objective; costs one evaluation per point of `LINE`.
        to: The weights at the end of the line.
        validation: A flag for each batch, see `split_batches`.
        label: The name of the line in texts.

    Raises:
        ValueError: If `to` shares no name with the objective, or has other shapes.
    """
    joint = evaluate_slice(objective, difference(to, objective.params), LINE, label=label)
    return split_batches(joint, validation)


def rise_stderr(line: Slice) -> Tensor:
    """Return the standard error of `L(alpha) - L(0)` over the batches, paired, `[n_points]`.

    The batches differ in their loss more than in its rise. 0 at 0; nan where a loss is not finite,
    and everywhere for one batch.

    Example:
        >>> import torch
        >>> line = Slice(torch.tensor([0.0, 1.0]), torch.tensor([[1.0, 7.0], [2.0, 10.0]]))
        >>> rise_stderr(line).tolist()
        [0.0, 1.0]
    """
    return standard_error(line.losses - line.losses[grid_index(line.alphas, 0.0)])


def compare_ends(slice: Slice) -> LineScore:
    """Score the line between two sets of weights, current at 0 and average at 1.

    Costs no evaluation.

    Args:
        slice: Losses on a grid that contains 0 and 1, as far beyond 1 as before 0: `line_grid(4.0)`
            along `difference(average, current)`.

    Returns:
        The score.

    Raises:
        ValueError: If the grid lacks 1 or reaches further on one side than on the other.

    Example:
        >>> import torch
        >>> t = torch.tensor([-1.0, 0.0, 1.0, 2.0])
        >>> score = compare_ends(Slice(t, torch.tensor([5.0, 1.0, 0.5, 1.5]), distance=3.0))
        >>> score.gap, score.outward_ratio, score.minimum
        (-0.5, 4.0, 1.0)
    """
    t, loss = slice.alphas, slice.mean
    if not joins_two_ends(t):
        raise ValueError(
            "`slice` must have a grid that contains 1 and reaches as far beyond 1 as before 0. "
            f"Got {t.tolist()}. Use line_grid(overhang)."
        )
    start, end = grid_index(t, 0.0), grid_index(t, 1.0)
    inside, chord = t[start : end + 1], loss[end] - loss[start]
    gaps = slice.losses[end] - slice.losses[start]
    leans = slice.losses[0] - slice.losses[-1] + gaps  # rise behind minus rise beyond
    behind, beyond = float(loss[0] - loss[start]), float(loss[-1] - loss[end])
    near = [_at(t, loss, at) - float(loss[k]) for at, k in ((-1.0, start), (2.0, end))]
    minimum = slice.minimum
    return LineScore(
        distance=slice.distance,
        gap=float(chord),
        gap_stderr=float(standard_error(gaps)),
        n_batches=len(gaps),
        minimum=math.nan if minimum in (float(t[0]), float(t[-1])) else minimum,
        barrier=float((loss[start : end + 1] - loss[start] - inside * chord).max()),
        rise_behind=behind,
        rise_beyond=beyond,
        outward_ratio=_ratio(behind, beyond),
        outward_ratio_near=_ratio(*near),
        outward_stderr=float(standard_error(leans)),
        sign_agreement=slice.sign_agreement,
    )


def _ratio(behind: float, beyond: float) -> float:
    return behind / beyond if behind > 0 and beyond > 0 else math.nan


def _at(t: Tensor, loss: Tensor, at: float) -> float:
    """Return the loss at a point, linear between grid points; nan beyond the grid."""
    if on_grid(t, at):
        return float(loss[grid_index(t, at)])
    k = int((t < at).sum())
    if k in (0, len(t)):
        return math.nan
    share = (at - t[k - 1]) / (t[k] - t[k - 1])
    return float(loss[k - 1] + share * (loss[k] - loss[k - 1]))
