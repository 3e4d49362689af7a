"""The line between two sets of weights: which end lies lower, and which on the flat side."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from lightning_landscape.measures.slices import Slice, grid_index, on_grid

__all__ = ["LineScore", "compare_ends", "describe_line"]


@dataclass(frozen=True)
class LineScore:
    """The line from one set of weights (`t = 0`) to another (`t = 1`).

    Attributes:
        distance: L2 norm between the two.
        gap: `L(1) - L(0)`.
        gap_stderr: Standard error of `gap` over the batches, paired; nan for one batch.
        minimum: The grid `t` of the least finite loss.
        barrier: Max over grid points in [0, 1] of `L(t) - ((1 - t) L(0) + t L(1))`, at least 0.
        outward_ratio: `[L(-k) - L(0)] / [L(1 + k) - L(1)]` at the ends of the grid, `k` its
            overhang; above 1 the second set of weights is on the flat side. nan without overhang;
            read it only where both rises are positive.
    """

    distance: float
    gap: float
    gap_stderr: float
    minimum: float
    barrier: float
    outward_ratio: float

    def to_dict(self) -> dict[str, float]:
        """Return everything as plain numbers."""
        return asdict(self)


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
    overhang = -float(t[0])
    tolerance = 1e-9 * float(t.abs().max())
    if not on_grid(t, 1.0) or abs(float(t[-1]) - 1 - overhang) > tolerance:
        raise ValueError(
            "`slice` must have a grid that contains 1 and reaches as far beyond 1 as before 0. "
            f"Got {t.tolist()}. Use line_grid(overhang)."
        )
    start, end = grid_index(t, 0.0), grid_index(t, 1.0)
    inside, chord = t[start : end + 1], loss[end] - loss[start]
    gaps = slice.losses[end] - slice.losses[start]
    return LineScore(
        distance=slice.distance,
        gap=float(chord),
        gap_stderr=float(gaps.std() / math.sqrt(len(gaps))) if len(gaps) > 1 else math.nan,
        minimum=slice.minimum,
        barrier=float((loss[start : end + 1] - loss[start] - inside * chord).max()),
        outward_ratio=float((loss[0] - loss[start]) / (loss[-1] - loss[end])),
    )


def describe_line(train: LineScore, validation: LineScore | None = None) -> str:
    """Say in words what the line from the current weights to an average shows, and no more.

    A gap counts from two standard errors on; the flat side is only named where the loss rises
    beyond both ends.

    Args:
        train: The line on train batches.
        validation: The line on validation batches, if there are any.

    Returns:
        A few sentences.

    Example:
        >>> print(describe_line(LineScore(3.0, 0.1, 0.01, 0.0, 0.0, 5.0)))
        The average was 3 (L2) from the weights. Its training loss is higher by 0.1 ± 0.01.
        It is on the flat side: outward, the loss rises 5 times as much behind the weights.
        No verdict on whether averaging helps: no validation batches were measured.
    """
    sentences = [
        f"The average was {train.distance:.3g} (L2) from the weights. "
        f"Its training loss is {_gap(train)}.",
        _flat_side(train),
    ]
    if validation is None:
        sentences.append(
            "No verdict on whether averaging helps: no validation batches were measured."
        )
    else:
        sentences.append(
            f"Its validation loss is {_gap(validation)}. Along the line, training is best at "
            f"t = {train.minimum:.3g} and validation at t = {validation.minimum:.3g}."
        )
    return "\n".join(sentences)


def _gap(score: LineScore) -> str:
    size = f"{abs(score.gap):.3g} ± {score.gap_stderr:.2g}"
    if math.isnan(score.gap_stderr):
        return f"different by {score.gap:+.3g}, no verdict: one batch has no standard error"
    if not abs(score.gap) >= 2 * score.gap_stderr:
        return f"within two standard errors, no verdict: {score.gap:+.3g} ± {score.gap_stderr:.2g}"
    return f"higher by {size}" if score.gap > 0 else f"lower by {size}"


def _flat_side(score: LineScore) -> str:
    ratio = score.outward_ratio
    if not 0 < ratio < math.inf:
        return "No verdict on the flat side: the loss does not rise beyond both ends."
    if ratio > 1:
        return (
            f"It is on the flat side: outward, the loss rises {ratio:.3g} times as much behind the "
            "weights."
        )
    return (
        f"It is on the steep side: outward, the loss rises {1 / ratio:.3g} times as much beyond it."
    )
