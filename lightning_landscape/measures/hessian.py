"""The sharpest direction: the top eigenvector of the Hessian, by Lanczos on gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_landscape.objective import Objective
from lightning_landscape.params import Params, l2_norm

_STEP = 1e-3  # of a finite difference, relative to the norm of the weights


@dataclass(frozen=True, eq=False)
class TopEigen:
    """The largest eigenvalue of the Hessian and its direction.

    Attributes:
        value: The eigenvalue, loss per squared L2 distance.
        direction: Its eigenvector, of unit L2 norm; its sign is that of `<gradient, v> >= 0`.
    """

    value: float
    direction: Params


def top_eigen(objective: Objective, *, seed: int = 0, tolerance: float = 1e-2) -> TopEigen:
    """Find the direction along which the loss curves most, where an objective stands.

    Lanczos (`scipy.sparse.linalg.eigsh`) on products of the Hessian with vectors, each a central
    difference of two gradients: it works for every module whose gradient can be had. Costs about 20
    to 60 gradient evaluations and holds about 20 vectors of the size of the weights in host memory.

    Args:
        objective: The loss and the point.
        seed: Seed of the vector that Lanczos begins with.
        tolerance: Relative accuracy of the eigenvalue.

    Raises:
        ImportError: If scipy is not installed.
        ValueError: If the gradient is not finite, or all weights are zero.

    Example:
        >>> from lightning_landscape import FunctionObjective
        >>> bowl = FunctionObjective(
        ...     lambda p: (p["x"] ** 2 * torch.tensor([1.0, 5.0, 2.0])).sum() / 2,
        ...     {"x": torch.ones(3)},
        ... )
        >>> found = top_eigen(bowl, tolerance=1e-6)
        >>> round(found.value, 2), [round(abs(v), 2) for v in found.direction["x"].tolist()]
        (5.0, [0.0, 1.0, 0.0])
    """
    linalg = _import_eigsh()
    params = objective.params

    n = sum(tensor.numel() for tensor in params.values())
    scale = l2_norm(params)
    gradient = _flat(objective.gradient()[1])
    if not np.isfinite(gradient).all() or not scale:
        raise ValueError(
            "The Hessian needs a finite gradient, and weights that are not all zero, where the "
            f"objective stands. Got weights of norm {scale:.3g}."
        )

    def product(vector: np.ndarray) -> np.ndarray:
        length = float(np.linalg.norm(vector)) or 1.0
        step = _STEP * scale
        direction = _shaped(vector / length, params)
        ahead, behind = (_flat(objective.gradient(direction, s)[1]) for s in (step, -step))
        return (ahead - behind) * (length / (2 * step))

    start = np.random.default_rng(seed).standard_normal(n)
    if n < 3:  # too small for Lanczos
        hessian = np.stack([product(row) for row in np.eye(n)])
        values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
    else:
        operator = linalg.LinearOperator((n, n), matvec=product, dtype=np.float64)
        values, vectors = linalg.eigsh(operator, k=1, which="LA", v0=start, tol=tolerance)
    vector = vectors[:, -1]
    vector = vector if float(vector @ gradient) >= 0 else -vector
    return TopEigen(float(values[-1]), _shaped(vector, params))


def _import_eigsh() -> Any:
    try:
        import scipy.sparse.linalg as linalg
    except ImportError as error:
        raise ImportError(
            "The sharpest direction needs scipy, which is not installed: pip install scipy, or "
            "leave the family 'hessian' out."
        ) from error
    return linalg


def _flat(params: Params) -> np.ndarray:
    return np.concatenate(
        [tensor.detach().reshape(-1).cpu().double().numpy() for tensor in params.values()]
    )


def _shaped(vector: np.ndarray, like: Params) -> dict[str, Tensor]:
    parts = torch.from_numpy(np.ascontiguousarray(vector)).split([t.numel() for t in like.values()])
    return {
        name: part.view(tensor.shape).to(tensor)
        for (name, tensor), part in zip(like.items(), parts, strict=True)
    }
