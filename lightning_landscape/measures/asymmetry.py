"""Is one side of a slice steeper than the other? The score of a direction.

Rises are `R+(l) = L(+l) - L(0)` and `R-(l) = L(-l) - L(0)` for `l` in `(0, radius]`. Scores are
positive when the + side is steep.

References:
    He, Huang, Yuan (2019), Asymmetric Valleys: Beyond Sharp and Flat Local Minima,
    arXiv:1902.00744, Definition 1.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from lightning_landscape.measures.notebook import score_html
from lightning_landscape.measures.quantiles import student
from lightning_landscape.measures.slices import (
    Slice,
    grid_index,
    is_symmetric,
    on_grid,
    symmetric_grid,
)

__all__ = ["AsymmetryScore", "asymmetry_ratio", "is_asymmetric", "score_asymmetry"]

Verdict = Literal["asymmetric", "symmetric", "off-minimum", "unresolved"]

# Relative to the larger end rise. With cross-entropy growing a gain lowers the loss a little for
# ever: without this the most lopsided valleys were off-minimum.
_NO_FALL = 0.02


@dataclass(frozen=True)
class AsymmetryScore:
    """How lopsided one slice is. Losses are in the unit of the loss, alphas in that of the slice.

    Attributes:
        area: `(∫R+ - ∫R-) / (|∫R+| + |∫R-|)`, trapezoid rule from 0; in [-1, 1], 0 if both vanish.
        area_corrected: The same with `R+ - slope * l` and `R- + slope * l`: away from a minimum the
            slope alone makes a slice lopsided.
        stderr: Standard error of `area` over the batches, delete-one jackknife; nan for one batch.
        rise_plus: `R+(radius)`; inf where the loss is not finite.
        rise_minus: `R-(radius)`, likewise.
        slope: Central difference at 0, loss per alpha.
        minimum: The grid alpha of the least finite loss; the nearest to 0 of equals.
        fall: `L(0)` minus the least finite loss, at least 0; nan if `L(0)` is not finite.
        width: `(W+ - W-) / (W+ + W-)`. `W` is the distance at which a side first rises by half of
            the smaller end rise: which side is narrower, not how wide the valley is. nan if an end
            does not rise, or both sides are not finite at their first or at their last point.
        rise_radius: Where the mean of both rises first reaches `rise`, linear between grid points:
            how wide the valley is, in the unit of alpha. inf if it does not on this grid.
        ratio: `asymmetry_ratio` between half the radius and the radius.
        flat_side: +1 or -1, the flat side of the orientation with the larger ratio; 0 when neither
            exceeds 1.
        verdict: `"off-minimum"` when `|minimum| > radius / 4` and `fall` exceeds 2 % of the larger
            end rise, else `"unresolved"` when `|area| < t stderr`, `t` being Student's 97.5 %
            quantile for `n_batches - 1`, else `"asymmetric"` when `ratio > 2`, else `"symmetric"`.
            One batch has no standard error, so that nothing is unresolved with it.
    """

    area: float
    area_corrected: float
    stderr: float
    rise_plus: float
    rise_minus: float
    slope: float
    minimum: float
    fall: float
    width: float
    rise_radius: float
    ratio: float
    flat_side: int
    verdict: Verdict

    def _repr_html_(self) -> str:
        return score_html(self)

    def to_dict(self) -> dict[str, float | int | str]:
        """Return everything as plain numbers and strings."""
        return asdict(self)


def score_asymmetry(slice: Slice, *, rise: float = 0.5) -> AsymmetryScore:
    """Score how much steeper one side of 0 is than the other. Costs no evaluation.

    A side with a loss that is not finite counts as if it rose without bound: `area` is then +1 or
    -1. If both sides have one, `area` is 0 and the verdict `"unresolved"`. If `L(0)` is not finite,
    `area` is nan and the verdict `"unresolved"`.

    Args:
        slice: Losses on a grid symmetric about 0 that contains half its radius, such as
            `symmetric_grid(radius, 4 * k + 1)`.
        rise: The rise that `rise_radius` is about, in the unit of the loss.

    Returns:
        The score.

    Raises:
        ValueError: If the grid is not symmetric or lacks half the radius, or `rise` is not positive
            and finite.

    References:
        He, Huang, Yuan (2019), arXiv:1902.00744.

    Example:
        >>> alphas = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
        >>> score = score_asymmetry(Slice(alphas, torch.tensor([0.5, 0.25, 0.0, 1.0, 2.0])))
        >>> score.area, score.ratio, score.flat_side, score.verdict
        (0.6, 4.0, -1, 'asymmetric')
    """
    if not 0 < rise < math.inf:
        raise ValueError(f"`rise` must be positive and finite, in the loss's unit. Got {rise}.")
    sides = _Sides.of(slice.alphas, slice.mean)
    radius = float(sides.distance[-1])
    if not on_grid(sides.distance, radius / 2):
        raise ValueError(
            "`slice` must have half its radius on its grid: `n_points` must be 4 * k + 1 (5, 9, "
            f"13, ...). Got {len(slice.alphas)} points. Use symmetric_grid(radius, 13)."
        )
    plus, minus = sides.ratios(radius / 2, radius)
    ratio = max(plus, minus)
    area, stderr, minimum = sides.area(), _jackknife(slice), slice.minimum
    return AsymmetryScore(
        area=area,
        area_corrected=sides.area(sides.slope),
        stderr=stderr,
        rise_plus=float(sides.plus[-1]),
        rise_minus=float(sides.minus[-1]),
        slope=sides.slope,
        minimum=minimum,
        fall=sides.fall(),
        width=_width(sides),
        rise_radius=_first_reach(sides.distance, (sides.plus + sides.minus) / 2, rise),
        ratio=ratio,
        flat_side=0 if not ratio > 1 else 1 if plus >= minus else -1,
        verdict=_verdict(sides, area, stderr, minimum, ratio, n_batches=slice.losses.shape[1]),
    )


def scoring_grid(radius: float, n_points: int) -> Tensor:
    """Return the `symmetric_grid` of a slice that can be scored: half the radius is on it.

    Raises:
        ValueError: If `n_points` is not 4 k + 1, or `radius` is not positive and finite.

    Example:
        >>> scoring_grid(1.0, 5)
        tensor([-1.0000, -0.5000,  0.0000,  0.5000,  1.0000], dtype=torch.float64)
    """
    if not isinstance(n_points, Integral) or n_points % 4 != 1 or n_points < 5:
        near = max(5, (n_points + 2) // 4 * 4 + 1) if isinstance(n_points, Integral) else 13
        raise ValueError(
            "`n_points` must be 4 k + 1 (5, 9, 13, ...), so that 0 and half the radius are on the "
            f"grid. Got {n_points!r}: try {near}."
        )
    return symmetric_grid(radius, n_points)


def asymmetry_ratio(slice: Slice, *, zeta: float, r: float) -> float:
    """Return how many times steeper the steep side is, between `zeta` and `r` from 0.

    It is the supremum of the `c` for which the slice is asymmetric by the paper's Definition 1 with
    some `p`. With slopes as difference quotients of neighbouring losses, walking away from 0:
    (least slope on the steep side) / (greatest slope on the flat side); inf when the flat side
    never rises and the steep side always does, 0 when the steep side somewhere does not rise. It is
    computed for both orientations; the larger is returned.

    Args:
        slice: Losses on a grid symmetric about 0.
        zeta: The first alpha, on the grid: near 0 both slopes vanish.
        r: The last alpha, on the grid.

    Returns:
        The ratio, at least 0; nan when `L(0)` is not finite.

    Raises:
        ValueError: If the grid is not symmetric, or `zeta` or `r` are not on it, or not in order.

    References:
        He, Huang, Yuan (2019), arXiv:1902.00744, Definition 1.

    Example:
        >>> alphas = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
        >>> asymmetry_ratio(Slice(alphas, torch.tensor([0.5, 0.25, 0, 1, 2])), zeta=0.5, r=1.0)
        4.0
    """
    return max(_Sides.of(slice.alphas, slice.mean).ratios(zeta, r))


def is_asymmetric(slice: Slice, *, r: float, p: float, c: float, zeta: float) -> bool:
    """Return whether the slice is (r, p, c, zeta)-asymmetric, the paper's Definition 1 verbatim.

    In some orientation every slope on the flat side is below `p` and every slope on the steep side
    above `c * p`, both walking away from 0 over the grid intervals between `zeta` and `r`.

    Args:
        slice: Losses on a grid symmetric about 0.
        r: The last alpha, on the grid.
        p: The greatest slope that counts as flat, loss per alpha, positive.
        c: How many times steeper the other side must be, above 1.
        zeta: The first alpha, on the grid.

    Returns:
        Whether it is; a slope that is not a number satisfies neither inequality.

    Raises:
        ValueError: If `p` or `c` are out of range, or as in `asymmetry_ratio`.

    References:
        He, Huang, Yuan (2019), arXiv:1902.00744, Definition 1.

    Example:
        >>> alphas = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
        >>> line = Slice(alphas, torch.tensor([0.5, 0.25, 0, 1, 2]))
        >>> is_asymmetric(line, r=1.0, p=0.6, c=3.0, zeta=0.5)
        True
    """
    if not (p > 0 and c > 1):
        raise ValueError(f"`p` must be positive and `c` above 1. Got p={p} and c={c}.")
    sides = _Sides.of(slice.alphas, slice.mean)
    return any(
        bool((flat < p).all() and (steep > c * p).all())
        for flat, steep in (sides.slopes(side, zeta, r) for side in (1, -1))
    )


def cannot_count(part: Slice, *, c: float = 2.0) -> bool:
    """Return whether the outer points of a slice rule out that it counts as asymmetric.

    Whatever the points between are, the whole would be `"unresolved"`, because the centre is not
    finite or a loss on either side is not; or its ratio is at most `c`, because that of the known
    intervals is: more of them never raise the least slope nor lower the greatest.

    Args:
        part: The losses at 0 and at the outermost pairs of alphas, none left out between those.
        c: How many times steeper the steep side must be to count, see `AsymmetryRate`.

    Returns:
        Whether it is ruled out. True is final; False says nothing.

    Example:
        >>> alphas = torch.tensor([-6.0, -5.0, 0.0, 5.0, 6.0])  # ±1 to ±4 are not known
        >>> cannot_count(Slice(alphas, torch.tensor([7.0, 6.0, 0.0, 5.0, 6.5])))
        True
    """
    sides = _Sides.of(part.alphas, part.mean)
    if sides.plus.isnan().any() or all(sides.blown()):
        return True
    innermost, radius = float(sides.distance[1]), float(sides.distance[-1])
    if innermost == radius:  # two points make no interval
        return False
    zeta = max(innermost, radius / 2)
    return max(sides.ratios(zeta, radius)) <= c


@dataclass(frozen=True)
class _Sides:
    """Both sides of a symmetric slice, as distances and rises away from 0, index 0 being 0."""

    distance: Tensor
    plus: Tensor
    minus: Tensor
    slope: float
    rounding: float

    @classmethod
    def of(cls, alphas: Tensor, loss: Tensor) -> _Sides:
        middle, odd = divmod(len(alphas), 2)
        distance = alphas[middle:]
        if not odd or middle < 1 or not is_symmetric(alphas):
            raise ValueError(
                "`slice` must have a grid symmetric about 0 to compare its two sides. Got "
                f"{alphas.tolist()}. Use symmetric_grid(radius, n_points)."
            )
        if not loss[middle].isfinite():
            nothing = torch.full_like(distance, math.nan)
            return cls(distance, nothing, nothing, math.nan, math.nan)
        plus, minus = loss[middle:] - loss[middle], loss[: middle + 1].flip(0) - loss[middle]
        slope = float((loss[middle + 1] - loss[middle - 1]) / (2 * distance[1]))
        scale = float(loss[loss.isfinite()].abs().max())
        # what float64 leaves of an integral that vanishes exactly
        rounding = 8 * middle * torch.finfo(torch.float64).eps * scale * float(distance[-1])
        return cls(distance, _unbounded(plus), _unbounded(minus), slope, rounding)

    def blown(self) -> tuple[bool, bool]:
        """Whether the loss is not finite somewhere on the + side, and on the - side."""
        return bool(self.plus.isinf().any()), bool(self.minus.isinf().any())

    def fall(self) -> float:
        return max(-float(self.plus.min()), -float(self.minus.min()))  # both hold the 0 of L(0)

    def area(self, slope: float = 0.0) -> float:
        if self.plus.isnan().any():
            return math.nan
        blown_plus, blown_minus = self.blown()
        if blown_plus or blown_minus:
            return float(blown_plus) - float(blown_minus)
        plus = float(torch.trapezoid(self.plus - slope * self.distance, self.distance))
        minus = float(torch.trapezoid(self.minus + slope * self.distance, self.distance))
        total = abs(plus) + abs(minus)
        return (plus - minus) / total if total > self.rounding else 0.0

    def slopes(self, flat_side: int, zeta: float, r: float) -> tuple[Tensor, Tensor]:
        """Difference quotients of the flat and the steep side, walking away from 0.

        Over the grid intervals inside `[zeta, r]`. A side that blew up on the way, be it before
        `zeta`, is nowhere flat.
        """
        begin, end = grid_index(self.distance, zeta), grid_index(self.distance, r)
        both = on_grid(self.distance, zeta) and on_grid(self.distance, r)
        if not (0 <= zeta < r and both and begin < end):
            raise ValueError(
                "`zeta` and `r` must be alphas of the grid with 0 <= zeta < r. Got "
                f"zeta={zeta} and r={r} on {self.distance.tolist()}."
            )
        inside = slice(begin, end + 1)
        flat, steep = (self.plus, self.minus) if flat_side > 0 else (self.minus, self.plus)
        flat = torch.where(flat[: end + 1].isinf().any(), math.inf, flat)
        distance = self.distance[inside]
        return _slopes(flat[inside], distance), _slopes(steep[inside], distance)

    def ratios(self, zeta: float, r: float) -> tuple[float, float]:
        """The ratio with the flat side at +, and with the flat side at -."""
        return _ratio(*self.slopes(1, zeta, r)), _ratio(*self.slopes(-1, zeta, r))


def _ratio(flat: Tensor, steep: Tensor) -> float:
    steepest_flat, least_steep = float(flat.max()), float(steep.min())
    if math.isnan(steepest_flat) or math.isnan(least_steep):
        return math.nan
    if least_steep <= 0 or math.isinf(steepest_flat):
        return 0.0
    return least_steep / steepest_flat if steepest_flat > 0 else math.inf


def _slopes(rises: Tensor, distance: Tensor) -> Tensor:
    slopes = rises.diff() / distance.diff()
    return torch.where(rises[1:].isinf() | rises[:-1].isinf(), math.inf, slopes)


def _unbounded(rises: Tensor) -> Tensor:
    return torch.where(rises.isfinite(), rises, math.inf)


def _width(sides: _Sides) -> float:
    half = min(float(sides.plus[-1]), float(sides.minus[-1])) / 2
    if not 0 < half < math.inf:
        return math.nan
    plus, minus = (_first_reach(sides.distance, rises, half) for rises in (sides.plus, sides.minus))
    # both 0 when both sides blow up within their first step
    return (plus - minus) / (plus + minus) if plus + minus else math.nan


def _first_reach(distance: Tensor, rises: Tensor, level: float) -> float:
    """Return the distance where the rises first reach a positive level; inf if they never do."""
    if rises.isnan().any():
        return math.nan
    reached = (rises >= level).nonzero()
    if not len(reached):
        return math.inf
    k = int(reached[0])
    share = (level - float(rises[k - 1])) / float(rises[k] - rises[k - 1])
    return float(distance[k - 1] + share * (distance[k] - distance[k - 1]))


def _jackknife(line: Slice) -> float:
    n = line.losses.shape[1]
    if n < 2:
        return math.nan
    without = (line.losses.sum(dim=1, keepdim=True) - line.losses) / (n - 1)
    if not line.losses.isfinite().all():  # inf - inf: leave the batch out, do not subtract it
        kept = ~torch.eye(n, dtype=torch.bool)
        without = torch.stack([line.losses[:, keep].mean(dim=1) for keep in kept], dim=1)
    areas = torch.tensor(
        [_Sides.of(line.alphas, loss).area() for loss in without.T], dtype=torch.float64
    )
    return float(((n - 1) / n * (areas - areas.mean()).square().sum()).sqrt())


def _verdict(
    sides: _Sides, area: float, stderr: float, minimum: float, ratio: float, *, n_batches: int
) -> Verdict:
    if math.isnan(area) or all(sides.blown()):
        return "unresolved"
    # on some grids a quarter of the radius, a grid point, is rounded up
    far = abs(minimum) > (1 + 1e-9) * float(sides.distance[-1]) / 4
    if far and sides.fall() > _NO_FALL * max(float(sides.plus[-1]), float(sides.minus[-1])):
        return "off-minimum"
    if n_batches > 1 and abs(area) < student(n_batches - 1) * stderr:
        return "unresolved"
    return "asymmetric" if ratio > 2 else "symmetric"
