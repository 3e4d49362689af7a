"""Rates and medians over directions, with confidence intervals."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_landscape.measures.asymmetry import AsymmetryScore
from lightning_landscape.measures.quantiles import clopper_pearson
from lightning_landscape.measures.sequential import check_confidence, sequential_design

__all__ = ["AsymmetryRate"]


class AsymmetryRate(Metric):
    """The share of directions that are asymmetric, with an interval.

    A direction counts when its `ratio` exceeds `c` and the slice could be judged, that is, its
    verdict is neither `"off-minimum"` nor `"unresolved"`; every direction counts in `n`. So a low
    rate can also mean that many directions could not be judged: `Survey.rate` has their shares.

    The interval is Clopper's and Pearson's, exact for a fixed number of directions. With
    `precision` it is the interval of `SequentialDesign`, exact for sampling that stops at
    `is_precise`.

    Args:
        c: How many times steeper the steep side must be.
        confidence: Coverage of the interval.
        precision: Half the width of the interval to stop at; None for a fixed number of directions.

    Raises:
        ValueError: If `c` is below 1, `confidence` not between 0 and 1 or `precision` not between
            0.03 and 0.5; on `compute` if directions were added after `is_precise`.

    References:
        Clopper, Pearson (1934), The use of confidence or fiducial limits illustrated in the case of
        the binomial.

    Example:
        >>> from lightning_landscape import Slice, score_asymmetry
        >>> steps = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
        >>> rate = AsymmetryRate()
        >>> rate.update(score_asymmetry(Slice(steps, torch.tensor([0.5, 0.25, 0.0, 1.0, 2.0]))))
        >>> rate.update(score_asymmetry(Slice(steps, steps**2)))
        >>> {name: round(float(value), 3) for name, value in rate.compute().items()}
        {'rate': 0.5, 'low': 0.013, 'high': 0.987, 'n': 2.0}
    """

    full_state_update = False
    is_differentiable = False

    asymmetric: Tensor
    total: Tensor

    def __init__(
        self,
        c: float = 2.0,
        confidence: float = 0.95,
        *,
        precision: float | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        if not c >= 1:
            raise ValueError(f"`c` must be at least 1. Got {c}.")
        check_confidence(confidence)
        self.c = c
        self.confidence = confidence
        self.precision = precision
        self.design = None if precision is None else sequential_design(precision, confidence)
        self.add_state("asymmetric", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")

    @property
    def is_precise(self) -> bool:
        """Whether the interval is as narrow as `precision`; False without `precision`."""
        return bool(self.design and self.design.stops(int(self.asymmetric), int(self.total)))

    def update(self, score: AsymmetryScore | None) -> None:
        """Count one direction; None counts as not asymmetric, see `cannot_count`."""
        if score is not None:
            judged = score.verdict not in ("off-minimum", "unresolved")
            self.asymmetric += int(judged and score.ratio > self.c)
        self.total += 1

    def compute(self) -> dict[str, Tensor]:
        """Return `rate`, `low`, `high` and `n`, float64 scalars; nan, 0, 1 and 0 before any."""
        k, n = int(self.asymmetric), int(self.total)
        rate = k / n if n else math.nan
        design, confidence = self.design, self.confidence
        low, high = design.interval(k, n) if design else clopper_pearson(k, n, confidence)
        values = {"rate": rate, "low": low, "high": high, "n": float(n)}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
