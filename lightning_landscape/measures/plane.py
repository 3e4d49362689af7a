"""Planes in weight space: through three sets of weights, with axes in L2 distance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_landscape.inner_products import inner_products
from lightning_landscape.params import Params, difference, l2_norm

__all__ = ["PlaneBasis", "plane_through"]

_FLAT = 1e-6  # relative to the other direction: three points nearer to one line make no plane


@dataclass(frozen=True, eq=False)
class PlaneBasis:
    """A plane through weight space.

    Attributes:
        origin: The weights at `(0, 0)`.
        d1: The direction of the first axis, of unit L2 norm.
        d2: That of the second, of unit L2 norm and orthogonal to `d1`.
        points: Coordinates of the three sets of weights, float64 `[3, 2]`, in L2 distance.
    """

    origin: Params
    d1: Params
    d2: Params
    points: Tensor

    def project(self, params: Params) -> tuple[tuple[float, float], float]:
        """Return the nearest point of the plane to some weights, and their L2 distance from it.

        Raises:
            ValueError: If the weights have other names or shapes.
        """
        offset = difference(params, self.origin)
        x, y = _dot(offset, self.d1), _dot(offset, self.d2)
        return (x, y), math.sqrt(max(_dot(offset, offset) - x**2 - y**2, 0.0))


def plane_through(a: Params, b: Params, c: Params) -> PlaneBasis:
    """Return the plane through three sets of weights; `a` is the origin, `b` on the first axis.

    Costs no evaluation, and the memory of two directions.

    Args:
        a: Weights at the origin, such as the last.
        b: Weights on the first axis, such as their average.
        c: Weights elsewhere on the plane, such as those of another seed.

    Returns:
        The plane, with axes in L2 distance: both directions have unit norm and are orthogonal.

    Raises:
        ValueError: If two of the points are the same or all lie on one line, or if they have
            different names or shapes.

    Example:
        >>> corners = [(0.0, 0.0), (3.0, 0.0), (1.0, 2.0)]
        >>> a, b, c = ({"w": torch.tensor(corner)} for corner in corners)
        >>> plane = plane_through(a, b, c)
        >>> plane.points.tolist()
        [[0.0, 0.0], [3.0, 0.0], [1.0, 2.0]]
        >>> plane.project({"w": torch.tensor([2.0, -1.0])})
        ((2.0, -1.0), 0.0)
    """
    first, second = difference(b, a), difference(c, a)
    length, reach = l2_norm(first), l2_norm(second)
    if not (0 < length < math.inf and 0 < reach < math.inf):
        raise ValueError(
            "`a`, `b` and `c` must be three different sets of finite weights to span a plane. "
            f"Got the distances {length:.3g} from a to b and {reach:.3g} from a to c."
        )
    d1 = _scaled(first, 1 / length)
    along = _dot(second, d1)
    across = orthogonalized(second, d1)
    height = l2_norm(across)
    if height <= _FLAT * reach:
        raise ValueError(
            "`a`, `b` and `c` must not lie on one line to span a plane. Got c at a distance of "
            f"{height:.3g} from the line through a and b. Use evaluate_slice along that line."
        )
    d2 = _scaled(across, 1 / height)
    points = torch.tensor([[0, 0], [length, 0], [along, height]], dtype=torch.float64)
    return PlaneBasis(a, d1, d2, points)


def orthogonalized(direction: Params, against: Params) -> dict[str, Tensor]:
    """Return a direction without its part along another.

    Two random directions are orthogonalised with this after they were normalised, and then are
    orthogonal to rounding.

    Example:
        >>> across = orthogonalized({"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([2.0, 0])})
        >>> across["w"].tolist()
        [0.0, 1.0]
    """
    for _ in range(2):  # once more takes away what rounding left
        share = _dot(direction, against) / _dot(against, against)
        direction = {
            name: tensor - share * against[name] if name in against else tensor
            for name, tensor in direction.items()
        }
    return dict(direction)


def _dot(a: Params, b: Params) -> float:
    rows = [(a[name], b[name]) for name in a if name in b]
    return float(inner_products(rows, lambda x, y: ((x, y),)).sum())


def _scaled(direction: Params, factor: float) -> dict[str, Tensor]:
    return {name: tensor * factor for name, tensor in direction.items()}
