"""The checkpoints of one run: where they lie on a plane, and when averaging may start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lightning_landscape.measures.plane import PlaneBasis
from lightning_landscape.params import Params, difference, sign_agreement

__all__ = ["Trajectory", "layer_sign_agreement", "project_trajectory"]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Sets of weights, projected onto a plane.

    Attributes:
        points: Their coordinates on the plane, float64 `[n, 2]`, in L2 distance.
        distances: Their L2 distance from the plane, float64 `[n]`.
        shown: Share of the distance from the plane's origin that the plane shows, float64 `[n]`, in
            [0, 1]: where it is small the picture says little about these weights; nan at the
            origin.
    """

    points: Tensor
    distances: Tensor
    shown: Tensor

    def to_dict(self) -> dict[str, list[object]]:
        """Return everything as plain numbers."""
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}


def project_trajectory(basis: PlaneBasis, weights: Sequence[Params]) -> Trajectory:
    """Project the checkpoints of a run onto a plane. Costs no evaluation.

    Args:
        basis: The plane, see `plane_through`.
        weights: The checkpoints, in their order.

    Raises:
        ValueError: If some weights have other names or shapes than the plane's.

    Example:
        >>> from lightning_landscape import plane_through
        >>> a, b, c = ({"w": torch.tensor(w)} for w in ([0.0, 0, 0], [2.0, 0, 0], [0.0, 1, 0]))
        >>> plane = plane_through(a, b, c)
        >>> path = project_trajectory(plane, [{"w": torch.tensor([3.0, 0.0, 4.0])}])
        >>> path.points.tolist(), path.distances.tolist(), path.shown.tolist()
        ([[3.0, 0.0]], [4.0], [0.6])
    """
    found = [basis.project(own) for own in weights]
    points = torch.tensor([point for point, _ in found], dtype=torch.float64).reshape(-1, 2)
    distances = torch.tensor([distance for _, distance in found], dtype=torch.float64)
    inside = points.norm(dim=1)
    whole = torch.hypot(inside, distances)
    return Trajectory(points, distances, torch.where(whole > 0, inside / whole, math.nan))


def layer_sign_agreement(a: Params, b: Params) -> dict[str, float]:
    """Return the share of the weights that have the same sign in two sets, layer by layer.

    Networks with equal signs are often linearly connected: the loss stays low between them (Li et
    al. 2024). Costs no evaluation.

    Raises:
        ValueError: If the two share no name, or a shared name has two shapes.

    References:
        Li, Tang, Zhang, Li, Zhan (2024), arXiv:2405.12489.

    Example:
        >>> layer_sign_agreement({"w": torch.tensor([1.0, -1.0])}, {"w": torch.tensor([3.0, 2.0])})
        {'w': 0.5}
    """
    return {
        name: sign_agreement({name: b[name]}, {name: step})
        for name, step in difference(a, b).items()
    }
