"""Is my step too large? How much each layer's gradient changes along a direction.

A step is chosen from the gradient where it starts. Lemma 1 of Bernstein et al. turns that into a
criterion: if along the whole step the gradient of every moved tensor changes by less, relative to
its size, than the cosine between the step and the negative gradient, the loss falls. Deep relative
trust is their model of that change: `Π_k (1 + eta ||D_k|| / ||W_k||) - 1`, the same for every
layer. It is a model; measured breakdowns mostly exceed it, so both are given side by side.

References:
    Bernstein, Vahdat, Yue, Liu (2020), On the distance between two neural networks and the
    stability of learning, arXiv:2002.03432: Lemma 1 and 2, figure 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_landscape.inner_products import inner_products, squared
from lightning_landscape.measures.gradients import Start, mean_slopes, where_finite
from lightning_landscape.measures.notebook import breakdown_html
from lightning_landscape.measures.slices import as_plain
from lightning_landscape.measures.words_breakdown import describe_breakdown
from lightning_landscape.objective import Objective, check_direction, gather_losses
from lightning_landscape.params import Params
from lightning_landscape.sharding import distribute_like

__all__ = ["GradientBreakdown", "critical_rate", "measure_breakdown", "trust_lr"]

_RELATIVE = tuple(10.0 ** (k / 2 - 4) for k in range(7))

DEFAULT_ETAS: dict[str, tuple[float, ...]] = {
    "gradient": _RELATIVE,
    "random": _RELATIVE,
    "update": (0.25, 0.5, 1.0, 2.0, 4.0),
}
"""The steps along the named directions: relative steps, or fractions of the step taken."""

_DEAD = 1e-8  # relative to the largest gradient of a layer; below it there is only rounding


@dataclass(frozen=True, eq=False)
class GradientBreakdown:
    """How much each layer's gradient changes along a direction, and the largest descent step.

    Layers are the moved tensors with two dimensions or more that have a gradient; biases and gains
    move with the rest but are no layers. Tensors are float64 on the CPU.

    Attributes:
        names: The layers, in the objective's order.
        etas: The measured steps, `[n_etas]`, ascending, above 0. In units of the direction: 1 is
            `params + direction`.
        breakdown: `||g_l(W + eta D) - g_l(W)|| / ||g_l(W)||`, `[n_layers, n_etas]`.
        excess: `breakdown / model`, `[n_layers, n_etas]`.
        cosine: Between `g_l(W + eta D)` and `g_l(W)`, `[n_layers, n_etas]`; nan where one is 0.
        model: Deep relative trust (model), `Π_k (1 + eta ||D_k|| / ||W_k||) - 1` over the layers
            whose weights are not all zero, `[n_etas]`.
        loss: Mean over the batches, `[n_etas]`.
        slope: `Σ <g(W + eta D), D>` over everything that moves, loss per eta, `[n_etas]`.
        loss_start: The loss at `eta = 0`.
        slope_start: The slope at `eta = 0`.
        dead: Moved matrices with a gradient of at most 1e-8 of the largest: their relative change
            is not computed.
        descent_limit: The first zero of the slope, the largest step that is still descent; in eta,
            linear between the points and from 0. 0 uphill, inf when every slope is negative, nan
            when the loss or slope is not finite at the start. A loss or slope that is not finite
            later counts as a zero at the last finite eta.
        break_even: The first zero of `(loss - loss_start) / eta`: the loss is back at its start.
            Found like `descent_limit`, with `slope_start` as the value at 0. If the loss changes by
            less than its float32 rounding, the change is computed from the slopes.
        trust_lr: Lemma 2 under the model, as a relative step: `trust_lr(depth, cosine)` with the
            number of layers and the least `cos(-g_l, D_l)`. Not positive: no step is promised; nan:
            no layer, or a gradient that is not finite.
        relative_step: `max_k ||D_k|| / ||W_k||`, the relative step of `eta = 1`: it turns
            `descent_limit` and `break_even` into the unit of `trust_lr`. nan if no layer has
            weights. In the middle of a training both mostly follow the learning rate.
    """

    names: tuple[str, ...]
    etas: Tensor
    breakdown: Tensor
    excess: Tensor
    cosine: Tensor
    model: Tensor
    loss: Tensor
    slope: Tensor
    loss_start: float
    slope_start: float
    dead: tuple[str, ...]
    descent_limit: float
    break_even: float
    trust_lr: float
    relative_step: float

    def _repr_html_(self) -> str:
        return breakdown_html(self)

    def to_dict(self) -> dict[str, object]:
        """Return everything as plain numbers, lists and strings."""
        return as_plain(self, [field.name for field in fields(self)])

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> GradientBreakdown:
        """Return the breakdown that `to_dict` was called on."""
        tensors = {
            name: torch.tensor(value, dtype=torch.float64)
            for name, value in content.items()
            if isinstance(value, list) and name not in ("names", "dead")
        }
        shape = len(content["names"]), len(content["etas"])  # an empty list has lost it
        for name in ("breakdown", "excess", "cosine"):
            tensors[name] = tensors[name].reshape(shape)
        names = {name: tuple(content[name]) for name in ("names", "dead")}
        return cls(**{**content, **tensors, **names})

    def summary(self) -> str:
        """Return one to three sentences that say what was measured, see `describe_breakdown`."""
        return describe_breakdown(self)


def measure_breakdown(
    objective: Objective,
    direction: Params,
    etas: Sequence[float] | Tensor,
    *,
    start: Start | None = None,
) -> GradientBreakdown:
    """Measure how the gradient changes along a direction, on the same batches at every point.

    Costs exactly `1 + len(etas)` gradient evaluations, one less with `start`, and holds two
    gradients at a time, that of the start and the current one. Losses and gradients that are not
    finite are kept.

    Args:
        objective: The loss and the point to start from.
        direction: The direction; names that it lacks, and tensors of zeros, do not move.
        etas: The steps, `[n_etas]`, ascending, above 0, in units of the direction; `DEFAULT_ETAS`
            has those of the named directions. 0 is always measured and not listed.
        start: The gradient at the objective's point, if it is known: `Start.of(objective)`.

    Returns:
        The breakdown of each layer, the slope and loss along the direction, and the limits computed
        from these.

    Raises:
        ValueError: If `etas` is no such grid, or the direction does not fit the parameters.

    References:
        Bernstein et al. (2020), arXiv:2002.03432, Lemma 1 and figure 1.

    Example:
        Each factor of a product of three grows by 10 %. The gradient of one factor is the product
        of the other two: it grows by `1.1 ** 2 - 1`, and the model says `1.1 ** 3 - 1`.

        >>> from lightning_landscape import FunctionObjective
        >>> net = {name: torch.ones(1, 1) for name in "abc"}
        >>> product = FunctionObjective(lambda p: -p["a"] * p["b"] * p["c"], net)
        >>> found = measure_breakdown(product, net, [0.1])
        >>> [round(float(r), 6) for r in (found.breakdown[0], found.model)]
        [0.21, 0.331]
    """
    etas = _checked_etas(etas)
    check_direction(direction, objective.params if start is None else start.params)
    moved = _moved(start or Start.of(objective), direction)
    losses, dots = [moved.losses], []
    for eta in etas.tolist():
        losses_here, dots_here = _dots_along(objective, direction, eta, moved)
        losses.append(losses_here)
        dots.append(dots_here)
    loss = gather_losses(objective, torch.stack(losses)).cpu().double().mean(dim=1)
    return _conclude(moved, etas, loss, torch.stack(dots).cpu().double())


def critical_rate(rate: float, found: GradientBreakdown) -> float:
    """Return the learning rate at which this step would have left its batch's loss unchanged.

    The rate in use times `break_even`: with a larger one this step would have raised the loss. For
    optimizers whose step is proportional to the rate; exact on a quadratic. Costs no evaluation.

    Args:
        rate: The learning rate of the step.
        found: The breakdown along that step, the direction `"update"`: `eta = 1` is the whole step.

    Returns:
        The critical rate; inf if the loss stayed lower at every step measured, nan if `break_even`
        is.

    Raises:
        ValueError: If the rate is not positive and finite.

    Example:
        Descent on `2 w**2` with a rate of .1 goes from 1 to .6; with .5 to -1, where the loss is
        the same.

        >>> from lightning_landscape import FunctionObjective
        >>> bowl = FunctionObjective(lambda p: 2 * p["w"].square().sum(), {"w": torch.ones(1)})
        >>> step = {"w": torch.tensor([-0.4])}
        >>> round(critical_rate(0.1, measure_breakdown(bowl, step, [1.0, 2.0, 8.0])), 6)
        0.5
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"`rate` must be a learning rate, positive and finite. Got {rate!r}.")
    return rate * found.break_even


class _Moved(NamedTuple):
    """The tensors that move, where they start.

    Attributes:
        losses: The loss on each batch.
        gradients: By name.
        direction: Likewise.
        dots: `<g, g>`, `<w, w>`, `<d, d>` and `<g, d>`, a row each, `[4, n_moved]`.
        is_matrix: Whether a tensor has two dimensions or more, `[n_moved]`.
    """

    losses: Tensor
    gradients: dict[str, Tensor]
    direction: dict[str, Tensor]
    dots: Tensor
    is_matrix: Tensor


def _moved(start: Start, direction: Params) -> _Moved:
    params, losses, gradients = start
    # as the objective walks it: in the dtype and on the device of the weights
    steps = {
        name: distribute_like(direction[name].detach(), w).to(w)
        for name, w in params.items()
        if name in direction
    }
    dots = inner_products(
        [(gradients[name], params[name], step) for name, step in steps.items()],
        lambda g, w, d: ((g, g), (w, w), (d, d), (g, d)),
    )
    dots = dots.cpu().double()
    moves = dots[:, 2] != 0  # also where it is nan
    names = _chosen(steps, moves)
    return _Moved(
        losses,
        {name: gradients[name] for name in names},
        {name: steps[name] for name in names},
        dots[moves].T.contiguous(),
        torch.tensor([params[name].ndim >= 2 for name in names], dtype=torch.bool),
    )


def _chosen(names: Iterable[str], chosen: Tensor) -> tuple[str, ...]:
    return tuple(name for name, yes in zip(names, chosen.tolist(), strict=True) if yes)


def _dots_along(
    objective: Objective, direction: Params, eta: float, start: _Moved
) -> tuple[Tensor, Tensor]:
    """Return the losses at one eta, and four products per moved tensor, `[n_moved, 4]`."""
    losses, gradients = objective.gradient(direction, eta)
    summed = inner_products(
        [(gradients[name], then, start.direction[name]) for name, then in start.gradients.items()],
        lambda now, then, step: ((now, now), (now, then), (now, step), squared(now - then)),
    )
    return losses, summed  # the gradients end here: no two etas are held together


def _conclude(start: _Moved, etas: Tensor, loss: Tensor, dots: Tensor) -> GradientBreakdown:
    norms, slopes = start.dots[:3].sqrt(), start.dots[3]
    known = norms[0, start.is_matrix & norms[0].isfinite()].tolist()
    dead = start.is_matrix & (norms[0] <= _DEAD * max(known, default=0.0))
    layer = start.is_matrix & ~dead
    gradient, weight, step = norms[:, layer]
    now, change = (dots[:, layer, k].sqrt().T for k in (0, 3))
    cosine = dots[:, layer, 1].T / (now * gradient[:, None])
    relative = (step / weight)[weight > 0]
    model = torch.expm1(torch.log1p(relative[:, None] * etas).sum(dim=0))
    breakdown = change / gradient[:, None]
    against = (-slopes[layer] / (gradient * step)).clamp(-1, 1)
    loss_start, slope_start, loss = float(loss[0]), float(slopes.sum()), loss[1:]
    slope = dots[:, :, 2].sum(dim=1)
    first = slope_start if math.isfinite(loss_start) else math.nan
    even = mean_slopes(etas, loss_start, loss, slope_start, slope)
    return GradientBreakdown(
        names=_chosen(start.gradients, layer),
        etas=etas,
        breakdown=breakdown,
        excess=breakdown / model,
        cosine=cosine.clamp(-1, 1),
        model=model,
        loss=loss,
        slope=slope,
        loss_start=loss_start,
        slope_start=slope_start,
        dead=_chosen(start.gradients, dead),
        descent_limit=_first_zero(etas, where_finite(slope, loss), first),
        break_even=_first_zero(etas, even, first),
        trust_lr=trust_lr(len(against), float(against.min())) if len(against) else math.nan,
        relative_step=float(relative.max()) if len(relative) else math.nan,
    )


def trust_lr(depth: float, cosine: float = 1.0) -> float:
    """Return the largest relative step that deep relative trust promises is descent.

    `(1 + cosine) ** (1 / depth) - 1`, Lemma 2 of the paper. It rests on a model of how gradients
    change, not on a bound, and real networks often exceed the model: take a fraction of it.

    Args:
        depth: How many weight matrices the network composes, at least 1.
        cosine: The least cosine, over layers, between the step and the negative gradient. Below
            -1 counts as -1.

    Returns:
        The step as a fraction of each layer's norm. Not positive: no step is promised.

    Raises:
        ValueError: If `depth` is below 1.

    Example:
        >>> round(trust_lr(16), 4)
        0.0443
    """
    if not depth >= 1:
        raise ValueError(f"`depth` counts weight matrices and must be at least 1. Got {depth!r}.")
    return max(1.0 + cosine, 0.0) ** (1.0 / depth) - 1.0


def _first_zero(etas: Tensor, values: Tensor, start: float) -> float:
    """Return the first zero of the line through `(0, start)` and the points, from below."""
    if not math.isfinite(start) or start >= 0:
        return 0.0 if math.isfinite(start) else math.nan
    before, below = 0.0, start
    for eta, value in zip(etas.tolist(), values.tolist(), strict=True):
        if not math.isfinite(value):
            return before
        if value >= 0:
            return before + (eta - before) * (below / (below - value))
        before, below = eta, value
    return math.inf


def etas_of(
    directions: Sequence[str], etas: Sequence[float] | Mapping[str, Sequence[float]] | None
) -> dict[str, Tensor]:
    """Return the steps along each of some named directions, by default `DEFAULT_ETAS`.

    Args:
        directions: Some of `"update"`, `"gradient"`, `"random"`, each once.
        etas: For all of them, or for some by name.

    Raises:
        ValueError: If a direction is unknown or repeated, or the etas do not ascend from above 0.
    """
    unknown = [name for name in directions if name not in DEFAULT_ETAS]
    if unknown or not directions or len(set(directions)) != len(directions):
        raise ValueError(
            f"`directions` must be some of {sorted(DEFAULT_ETAS)}, each once. "
            f"Got {list(directions)}."
        )
    given = {} if etas is None else etas
    given = given if isinstance(given, Mapping) else dict.fromkeys(directions, given)
    strange = [name for name in given if name not in directions]
    if strange:
        raise ValueError(
            f"`etas` must be for some of the directions, {list(directions)}. Got {strange}."
        )
    return {name: _checked_etas(given.get(name, DEFAULT_ETAS[name])) for name in directions}


def _checked_etas(etas: Sequence[float] | Tensor) -> Tensor:
    etas = torch.as_tensor(etas, dtype=torch.float64, device="cpu").detach().clone()
    ascending = etas.ndim == 1 and len(etas) > 0 and bool((etas.diff() > 0).all())
    if not ascending or not etas.isfinite().all() or not etas[0] > 0:
        raise ValueError(
            "`etas` must be at least one finite step above 0, strictly ascending; 0 itself is "
            f"always measured. Got {etas.tolist()}. Use DEFAULT_ETAS['gradient'], or sort yours."
        )
    return etas
