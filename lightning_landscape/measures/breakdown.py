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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lightning_landscape.inner_products import dense, inner_products, squared
from lightning_landscape.objective import Objective, check_direction
from lightning_landscape.params import Params
from lightning_landscape.sharding import distribute_like, local, with_local

__all__ = [
    "DEFAULT_ETAS",
    "GradientBreakdown",
    "gradient_direction",
    "measure_breakdown",
    "trust_lr",
]

_RELATIVE = tuple(10.0 ** (k / 2 - 4) for k in range(7))

DEFAULT_ETAS: dict[str, tuple[float, ...]] = {
    "gradient": _RELATIVE,
    "random": _RELATIVE,
    "update": (0.25, 0.5, 1.0, 2.0, 4.0),
}
"""Where to measure along the named directions: relative steps, or shares of the step taken."""

_DEAD = 1e-8  # relative to the largest gradient of a layer; below it there is only rounding


@dataclass(frozen=True, eq=False)
class GradientBreakdown:
    """How much each layer's gradient changes along a direction, and how far is still descent.

    Layers are the moved tensors with two dimensions or more that have a gradient; biases and gains
    move with the rest but are no layers. Tensors are float64 on the CPU.

    Attributes:
        names: The layers, in the objective's order.
        etas: Where it was measured, `[n_etas]`, ascending, above 0. In units of the direction: 1 is
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
        dead: Moved matrices whose gradient is at most 1e-8 of the largest: not divided.
        descent_limit: The first zero of the slope, the largest step that is still descent; in eta,
            linear between the points and from 0. 0 uphill, inf when every slope is negative, nan
            when the loss or slope is not finite at the start.
        break_even: The first zero of `(loss - loss_start) / eta`, where the loss is back at its
            start; likewise, `slope_start` being its value at 0. For both, where the loss or slope
            stops being finite counts as a zero at the last finite eta.
        trust_lr: Lemma 2 under the model, as a relative step: `trust_lr(depth, cosine)` with the
            number of layers and the least `cos(-g_l, D_l)`. Not positive: no step is promised; nan:
            no layer, or a gradient that is not finite.
        relative_step: `max_k ||D_k|| / ||W_k||`, what `eta = 1` is as a relative step: it turns
            `descent_limit` and `break_even` into the unit of `trust_lr`. nan if no layer has
            weights. In the middle of a training both mostly echo the learning rate in use.
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

    def to_dict(self) -> dict[str, object]:
        """Return everything as plain numbers, lists and strings."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    def summary(self) -> str:
        """Return one to three sentences that say what was measured, and no more than that."""
        sentences = (_say_descent(self), _say_layers(self), _say_trust(self))
        return " ".join(sentence for sentence in sentences if sentence)


def measure_breakdown(
    objective: Objective, direction: Params, etas: Sequence[float] | Tensor
) -> GradientBreakdown:
    """Measure how the gradient changes along a direction, on the same batches at every point.

    Costs exactly `1 + len(etas)` gradient evaluations and holds two gradients at a time, that of
    the start and the current one. Losses and gradients that are not finite are data and are kept.

    Args:
        objective: What to differentiate, and where to start.
        direction: Where to step; names that it lacks, and tensors of zeros, do not move.
        etas: How far, `[n_etas]`, ascending, above 0, in units of the direction; `DEFAULT_ETAS`
            has those of the named directions. 0 is always measured and not listed.

    Returns:
        The breakdown of each layer, the slope and loss along the way, and what follows from them.

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
    check_direction(direction, objective.params)
    start = _Start.of(objective, direction)
    losses, dots = [start.losses], []
    for eta in etas.tolist():
        losses_here, dots_here = _dots_along(objective, direction, eta, start)
        losses.append(losses_here)
        dots.append(dots_here)
    gather: Callable[[Tensor], Tensor] = getattr(objective, "gather", lambda local: local)
    loss = gather(torch.stack(losses)).cpu().double().mean(dim=1)
    return _conclude(start, etas, loss, torch.stack(dots).cpu().double())


def gradient_direction(objective: Objective) -> Params:
    """Return the step of the paper's figure 1, `D_l = -||W_l|| g_l / ||g_l||`, tensor by tensor.

    With it `eta` is a relative step, the same for every tensor, vectors included. Costs 1 gradient
    evaluation.

    Args:
        objective: What to differentiate, and where.

    Returns:
        A tensor per parameter, in its dtype and on its device; zero where either norm is.

    References:
        Bernstein et al. (2020), arXiv:2002.03432, figure 1.

    Example:
        >>> from lightning_landscape import FunctionObjective
        >>> line = FunctionObjective(lambda p: 7 * p["w"].sum(), {"w": 2 * torch.ones(4)})
        >>> gradient_direction(line)  # ||W|| = 4, and each of four equal parts takes half of it
        {'w': tensor([-2., -2., -2., -2.])}
    """
    params, gradients = objective.params, objective.gradient()[1]
    rows = [(w, gradients[name]) for name, w in params.items()]
    norms = inner_products(rows, lambda w, g: ((w, w), (g, g))).sqrt().unbind()
    return {
        name: _rescaled(gradients[name], w, *both.to(w.device))
        for (name, w), both in zip(params.items(), norms, strict=True)
    }


@dataclass(frozen=True, eq=False)
class _Start:
    """What is known at `eta = 0`; norms and flags have one entry per moved tensor."""

    losses: Tensor
    gradients: dict[str, Tensor]
    direction: dict[str, Tensor]
    gradient_norm: Tensor
    weight_norm: Tensor
    step_norm: Tensor
    slope: Tensor
    is_layer: Tensor
    is_dead: Tensor

    @classmethod
    def of(cls, objective: Objective, direction: Params) -> _Start:
        params = objective.params
        losses, gradients = objective.gradient()
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
        names = [name for name, move in zip(steps, moves.tolist(), strict=True) if move]
        gradient, weight, step = dots[moves, :3].sqrt().unbind(dim=1)
        is_matrix = torch.tensor([params[name].ndim >= 2 for name in names], dtype=torch.bool)
        finite = gradient[is_matrix & gradient.isfinite()].tolist()
        is_dead = is_matrix & (gradient <= _DEAD * max(finite, default=0.0))
        return cls(
            losses=losses,
            gradients={name: gradients[name] for name in names},
            direction={name: steps[name] for name in names},
            gradient_norm=gradient,
            weight_norm=weight,
            step_norm=step,
            slope=dots[moves, 3],
            is_layer=is_matrix & ~is_dead,
            is_dead=is_dead,
        )

    def names(self, chosen: Tensor) -> tuple[str, ...]:
        return tuple(n for n, yes in zip(self.gradients, chosen.tolist(), strict=True) if yes)


def _dots_along(
    objective: Objective, direction: Params, eta: float, start: _Start
) -> tuple[Tensor, Tensor]:
    """Return the losses at one eta, and four products per moved tensor, `[n_moved, 4]`."""
    losses, gradients = objective.gradient(direction, eta)
    summed = inner_products(
        [(gradients[name], then, start.direction[name]) for name, then in start.gradients.items()],
        lambda now, then, step: ((now, now), (now, then), (now, step), squared(now - then)),
    )
    return losses, summed  # the gradients end here: no two etas are held together


def _conclude(start: _Start, etas: Tensor, loss: Tensor, dots: Tensor) -> GradientBreakdown:
    layer = start.is_layer
    gradient, weight, step = (
        norm[layer] for norm in (start.gradient_norm, start.weight_norm, start.step_norm)
    )
    now, change = (dots[:, layer, k].sqrt().T for k in (0, 3))
    cosine = dots[:, layer, 1].T / (now * gradient[:, None])
    relative = (step / weight)[weight > 0]
    model = torch.expm1(torch.log1p(relative[:, None] * etas).sum(dim=0))
    breakdown = change / gradient[:, None]
    against = (-start.slope[layer] / (gradient * step)).clamp(-1, 1)
    loss_start, slope_start, loss = float(loss[0]), float(start.slope.sum()), loss[1:]
    slope = dots[:, :, 2].sum(dim=1)
    first = slope_start if math.isfinite(loss_start) else math.nan
    return GradientBreakdown(
        names=start.names(layer),
        etas=etas,
        breakdown=breakdown,
        excess=breakdown / model,
        cosine=cosine.clamp(-1, 1),
        model=model,
        loss=loss,
        slope=slope,
        loss_start=loss_start,
        slope_start=slope_start,
        dead=start.names(start.is_dead),
        descent_limit=_first_zero(etas, _where_finite(slope, loss), first),
        break_even=_first_zero(etas, (loss - loss_start) / etas, first),
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


def _where_finite(slope: Tensor, loss: Tensor) -> Tensor:
    return torch.where(loss.isfinite(), slope, math.nan)


def _checked_etas(etas: Sequence[float] | Tensor) -> Tensor:
    etas = torch.as_tensor(etas, dtype=torch.float64, device="cpu").detach().clone()
    ascending = etas.ndim == 1 and len(etas) > 0 and bool((etas.diff() > 0).all())
    if not ascending or not etas.isfinite().all() or not etas[0] > 0:
        raise ValueError(
            "`etas` must be at least one finite step above 0, strictly ascending; 0 itself is "
            f"always measured. Got {etas.tolist()}. Use DEFAULT_ETAS['gradient'], or sort yours."
        )
    return etas


def _rescaled(gradient: Tensor, weights: Tensor, weight_norm: Tensor, norm: Tensor) -> Tensor:
    gradient = dense(local(gradient))
    unit = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / norm
    nothing = (weight_norm == 0) | (norm == 0)
    return with_local(torch.where(nothing, 0.0, -weight_norm * unit).to(weights.dtype), weights)


# -- the words ---------------------------------------------------------------------------------


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "a value that is not finite"


def _whole(found: GradientBreakdown) -> int | None:
    """Return the column of `eta = 1` if it was measured: else the direction itself is no step."""
    at = (found.etas == 1).nonzero()
    return int(at[0]) if len(at) else None


def _say_descent(found: GradientBreakdown) -> str:
    limit, etas, slope = found.descent_limit, found.etas, _where_finite(found.slope, found.loss)
    if math.isnan(limit):
        what = "slope" if math.isfinite(found.loss_start) else "loss"
        return (
            f"The {what} is not finite at the start, so no step along the direction can be judged."
        )
    if found.slope_start > 0:
        return "The direction leads uphill on these batches: no step along it starts as descent."
    if found.slope_start == 0:
        return (
            "The slope along the direction is 0 at the start: no step along it starts as descent."
        )
    if math.isinf(limit):
        return (
            "The loss still falls on these batches at every step measured, up to eta = "
            f"{_number(float(etas[-1]))}: the descent limit lies beyond."
        )
    if not _crosses(slope):
        broken = _number(float(etas[~slope.isfinite()][0]))
        return (
            f"The loss still falls on these batches at eta = {_number(limit)}; at the next step "
            f"measured, {broken}, it or its slope is not finite."
        )
    whole = _whole(found)
    if whole is None:
        return f"Steps along the direction descend on these batches up to eta = {_number(limit)}."
    return (
        f"The whole step (eta = 1) is {_number(1 / max(limit, 1e-300))} times the largest "
        f"step that still descends on these batches (descent limit {_number(limit)} of the step); "
        f"it takes the loss from {_number(found.loss_start)} to "
        f"{_number(float(found.loss[whole]))}."
    )


def _say_layers(found: GradientBreakdown) -> str:
    if not found.names:
        return f"No layer has a gradient to compare ({len(found.dead)} moved without one)."
    whole = _whole(found)
    column = -1 if whole is None else whole
    breakdown, eta = found.breakdown[:, column], _number(float(found.etas[column]))
    broken = [
        n for n, r in zip(found.names, breakdown.tolist(), strict=True) if not math.isfinite(r)
    ]
    if broken:
        others = f", nor that of {len(broken) - 1} more" if broken[1:] else ""
        return f"The gradient change of layer {broken[0]} at eta = {eta} is not finite{others}."
    left_out = f" ({len(found.dead)} without a gradient left out)" if found.dead else ""
    if not breakdown.any():
        return f"No layer changed its gradient at eta = {eta}{left_out}."
    most = int(breakdown.argmax())
    model = _number(float(found.model[column]))
    says = "has no weights to go by" if math.isnan(found.relative_step) else f"says {model}"
    return (
        f"At eta = {eta} layer {found.names[most]} changed its gradient most, by "
        f"{_number(float(breakdown[most]))} times its size{left_out}; deep relative trust (model) "
        f"{says}."
    )


def _say_trust(found: GradientBreakdown) -> str:
    if math.isnan(found.trust_lr) or math.isnan(found.relative_step):
        return ""
    if found.trust_lr <= 0:
        return (
            "Deep relative trust (model) promises no step: in at least one layer the direction "
            "does not lead downhill."
        )
    model = f"deep relative trust (model) says {_number(found.trust_lr)}"
    if not found.slope_start < 0 or math.isnan(found.descent_limit):
        return f"As a relative step, {model}."
    rises = (found.loss - found.loss_start) / found.etas
    limit = _relative(found, found.descent_limit, _where_finite(found.slope, found.loss))
    even = _relative(found, found.break_even, rises)
    return f"As relative steps, the descent limit is {limit} and the break-even {even}; {model}."


def _relative(found: GradientBreakdown, zero: float, values: Tensor) -> str:
    where = _number(min(zero, float(found.etas[-1])) * found.relative_step)
    return where if _crosses(values) else f"beyond {where}"


def _crosses(values: Tensor) -> bool:
    """Return whether values from below reach 0, before they end or stop being finite."""
    ends = values[(values >= 0) | ~values.isfinite()]
    return len(ends) > 0 and bool(ends[0].isfinite())
