"""The gradient where an objective stands, and the steps down it."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_landscape.checks import check_choice
from lightning_landscape.inner_products import dense, inner_products
from lightning_landscape.objective import Objective
from lightning_landscape.params import Params
from lightning_landscape.sharding import local, with_local

__all__ = ["gradient_direction"]


_ROUNDING = 16 * 2**-24  # of a loss in float32, relative; sums over a batch round more than once


class Start(NamedTuple):
    """The point where directions start, measured once for all of them.

    Attributes:
        params: The weights there; only read.
        losses: The loss on each batch, `[n_batches]`.
        gradient: The gradient of their mean.
    """

    params: Params
    losses: Tensor
    gradient: Params

    @classmethod
    def of(cls, objective: Objective, params: Params | None = None) -> Start:
        """Evaluate the gradient at an objective's point.

        Args:
            objective: The objective.
            params: The weights at its point, if they are at hand: an objective may copy its own.
        """
        losses, gradient = objective.gradient()
        params = objective.params if params is None else params
        # a layer that the step itself has added is not among the weights before it
        known = {name: params[name] for name in gradient if name in params}
        return cls(known, losses, gradient)


def gradient_direction(
    objective: Objective,
    *,
    normalize: Literal["layer", "none"] = "layer",
    start: Start | None = None,
) -> Params:
    """Return a step down the gradient, tensor by tensor.

    `"layer"`: `D_l = -||W_l|| g_l / ||g_l||`, the paper's figure 1, so that `eta` is a relative
    step, the same for every tensor, vectors included. `"none"`: `D = -g`, so that `eta` is the
    learning rate of gradient descent, and so are `descent_limit` and `break_even`. Costs 1 gradient
    evaluation, none with `start`.

    Args:
        objective: The loss and the point.
        normalize: The length of the step, see above.
        start: The gradient at the objective's point, if it is known: `Start.of(objective)`.

    Returns:
        A tensor per parameter, in its dtype and on its device; with `"layer"` zero where either
        norm is.

    Raises:
        ValueError: If `normalize` is something else.

    References:
        Bernstein et al. (2020), arXiv:2002.03432, figure 1.

    Example:
        >>> from lightning_landscape import FunctionObjective, measure_breakdown
        >>> line = FunctionObjective(lambda p: 7 * p["w"].sum(), {"w": 2 * torch.ones(4)})
        >>> gradient_direction(line)  # ||W|| = 4, and each of four equal parts takes half of it
        {'w': tensor([-2., -2., -2., -2.])}
        >>> bowl = FunctionObjective(lambda p: 2 * p["w"].square().sum(), {"w": torch.ones(1)})
        >>> down = gradient_direction(bowl, normalize="none")
        >>> found = measure_breakdown(bowl, down, [0.1, 1.0])
        >>> round(found.break_even, 6)  # 2 over the curvature, 4
        0.5
    """
    check_choice("normalize", normalize, get_args(Literal["layer", "none"]))
    params, _, gradients = start or Start.of(objective)
    if normalize == "none":
        down = {name: -dense(local(gradients[name])) for name in params}
        return {name: with_local(down[name].to(w.dtype), w) for name, w in params.items()}
    rows = [(w, gradients[name]) for name, w in params.items()]
    norms = inner_products(rows, lambda w, g: ((w, w), (g, g))).sqrt().unbind()
    return {
        name: _rescaled(gradients[name], w, *both.to(w.device))
        for (name, w), both in zip(params.items(), norms, strict=True)
    }


def _rescaled(gradient: Tensor, weights: Tensor, weight_norm: Tensor, norm: Tensor) -> Tensor:
    gradient = dense(local(gradient))
    unit = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / norm
    nothing = (weight_norm == 0) | (norm == 0)
    return with_local(torch.where(nothing, 0.0, -weight_norm * unit).to(weights.dtype), weights)


def mean_slopes(
    etas: Tensor, loss_start: float, loss: Tensor, slope_start: float, slope: Tensor
) -> Tensor:
    """Return `(loss - loss_start) / eta`, of small steps too.

    A change of the loss below its rounding in float32 is taken from the slopes, by the trapezoid
    rule, if they agree that it is as small. The difference of the losses would be noise there.

    Args:
        etas: The measured steps, `[n_etas]`.
        loss_start: The loss at 0.
        loss: At the etas.
        slope_start: The slope at 0.
        slope: At the etas.
    """
    rise = loss - loss_start
    grid = torch.cat([etas.new_zeros(1), etas])
    slopes = torch.cat([slope.new_tensor([slope_start]), slope])
    by_slope = torch.cumulative_trapezoid(slopes, grid)
    rounding = _ROUNDING * abs(loss_start)
    small = (rise.abs() <= rounding) & (by_slope.abs() <= rounding)
    return torch.where(small, by_slope, rise) / etas


def where_finite(slope: Tensor, loss: Tensor) -> Tensor:
    """Return the slopes, nan where the loss is not finite."""
    return torch.where(loss.isfinite(), slope, math.nan)
