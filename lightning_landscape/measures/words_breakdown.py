"""The sentences about steps: gradient breakdown, the critical rate, successive steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_landscape.measures.gradients import mean_slopes, where_finite
from lightning_landscape.measures.quantiles import median_interval
from lightning_landscape.measures.words import LEAST_DIRECTIONS, counted, number

if TYPE_CHECKING:
    from lightning_landscape.measures.breakdown import GradientBreakdown


def describe_breakdown(found: GradientBreakdown) -> str:
    """Return one to three sentences that say what was measured along a direction, and no more."""
    if not math.isfinite(found.loss_start):
        return _say_descent(found)
    sentences = (_say_descent(found), _say_layers(found), _say_trust(found))
    return " ".join(filter(None, sentences))


def shown_column(found: GradientBreakdown) -> int:
    """Return which eta stands for the whole step: 1 if it was measured, else the last."""
    whole = (found.etas == 1).nonzero()
    return int(whole[0]) if len(whole) else len(found.etas) - 1


def loss_returns(found: GradientBreakdown) -> bool:
    """Return whether the loss is seen to be back at its start, not only to be not finite."""
    return _crosses(_rises(found))


def describe_critical_rate(
    rate: float, critical: float, *, step: int | None = None, uphill: bool = True
) -> str:
    """Compare the learning rate in use with the critical one, and say how little that means.

    Args:
        rate: The learning rate of the step that was measured.
        critical: What `critical_rate` gave for it.
        step: The training step; 0, the first one, is where the number says most.
        uphill: Whether a critical rate of 0 is that of a step that leads uphill from its start.
            Else it is that of a loss that is not finite anywhere along the step.

    Example:
        >>> describe_critical_rate(0.1, 0.06)[:37]
        'The rate in use is 0.1, the critical '
    """
    in_use = f"The rate in use is {number(rate)}"
    if math.isnan(critical):
        return f"{in_use}. No verdict on the critical rate, because a loss is not finite."
    if math.isinf(critical):
        return (
            f"{in_use}. On its own batch this step lowers the loss, and so did every larger step "
            "that was measured: the critical rate lies beyond."
        )
    if critical <= 0 and uphill:
        return (
            f"{in_use}. The step leads uphill on its own batch from the start, so that a lower "
            "rate would raise the loss of that batch too. Momentum of earlier batches, another "
            "dropout mask or noise of the batch can do that. If the loss goes down over epochs "
            "there is nothing to do."
        )
    if critical <= 0:
        return (
            f"{in_use}. The loss is not finite at any part of the step that was measured: try a "
            "much lower rate."
        )
    text = (
        f"{in_use}, the critical rate {number(critical)}: with a larger one this step would have "
        "raised the loss of its own batch."
    )
    if step == 0:
        return (
            f"{text} At the start of training it says how large a rate plain SGD bears in networks "
            "of few layers: take a third of it at most, a tenth in deep networks without batch "
            "norm. Deep ones with batch norm or residuals bore three times of it; momentum 0.9 "
            "bears three times more."
        )
    if rate > critical:
        return (
            f"{text} If the loss goes down over epochs there is nothing to do, the edge of "
            "stability looks like this; if it does not, try a lower rate. It is one batch, and "
            "does not predict single steps."
        )
    return f"{text} It is one batch, and in the middle of a training it follows the rate in use."


def describe_successive_steps(cosines: Sequence[float]) -> str:
    """Say whether steps undo each other, from the cosines of some pairs of successive ones.

    A median of at least six cosines whose 95 % interval lies below 0.

    Example:
        >>> print(describe_successive_steps([0.1, 0.2, 0.1]))
        No verdict on successive steps, because 3 cosines are too few (at least 6).
    """
    known = [cosine for cosine in cosines if not math.isnan(cosine)]
    if len(known) < LEAST_DIRECTIONS:
        return (
            f"No verdict on successive steps, because {counted(len(known), 'cosine')} "
            f"{'is' if len(known) == 1 else 'are'} too few (at least {LEAST_DIRECTIONS})."
        )
    middle, low, high = median_interval(known)
    numbers = f"{number(middle)} [{number(low)}, {number(high)}], of {len(known)}"
    if high < 0:
        return (
            f"Successive steps undo each other (median cosine {numbers}): the run hovers, or "
            "oscillates across. Decay the rate, or average."
        )
    if low > 0:
        return (
            f"Successive steps point the same way (median cosine {numbers}): with momentum they "
            "nearly always do, and it says nothing."
        )
    return f"Successive steps neither undo each other nor point the same way (cosine {numbers})."


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "a value that is not finite"


def _say_descent(found: GradientBreakdown) -> str:
    limit, etas, slope = found.descent_limit, found.etas, where_finite(found.slope, found.loss)
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
            "The loss still falls on these batches at every step measured, up to "
            f"{_far(found, float(etas[-1]))}: the descent limit lies beyond."
        )
    if not _crosses(slope):
        broken = _number(float(etas[~slope.isfinite()][0]))
        return (
            f"The loss still falls on these batches at {_far(found, limit)}; at the next step "
            f"measured, {broken}, it or its slope is not finite."
        )
    whole = shown_column(found)
    if etas[whole] != 1:  # the direction itself is no step
        return f"Along the direction the loss falls on these batches up to {_step(found, limit)}."
    return (
        f"The loss of these batches falls up to {_number(limit)} times the step that was made "
        f"(descent limit); the step takes the loss from {_number(found.loss_start)} to "
        f"{_number(float(found.loss[whole]))}."
    )


def _at(found: GradientBreakdown, column: int) -> str:
    """Return where along the direction a column is, in the unit of that direction."""
    if found.etas[column] == 1:
        return "over the whole step"
    return f"at {_step(found, float(found.etas[column]))}"


def _step(found: GradientBreakdown, eta: float) -> str:
    if abs(found.relative_step - 1) < 1e-3:  # each layer moves by eta times its norm
        return f"a relative step of {_number(eta)}"
    return f"eta = {_number(eta)}"


def _far(found: GradientBreakdown, eta: float) -> str:
    """Return how far along the direction an eta is."""
    is_step = bool((found.etas == 1).any())
    return f"{_number(eta)} times the step" if is_step else _step(found, eta)


def _say_layers(found: GradientBreakdown) -> str:
    if not found.names:
        return f"No layer has a gradient to compare ({len(found.dead)} moved without one)."
    column = shown_column(found)
    breakdown, eta = found.breakdown[:, column], _at(found, column)
    broken = [
        n for n, r in zip(found.names, breakdown.tolist(), strict=True) if not math.isfinite(r)
    ]
    if broken:
        others = f", nor that of {len(broken) - 1} more" if broken[1:] else ""
        return f"The gradient change of layer {broken[0]} {eta} is not finite{others}."
    left_out = f" ({len(found.dead)} without a gradient left out)" if found.dead else ""
    if not breakdown.any():
        return f"No layer changed its gradient {eta}{left_out}."
    most = int(breakdown.argmax())
    model = _number(float(found.model[column]))
    says = "has no weights to go by" if math.isnan(found.relative_step) else f"predicts {model}"
    if not math.isnan(found.relative_step) and float(found.excess[most, column]) > 10:
        says += ", which is usually far too little"
    return (
        f"{eta[0].upper()}{eta[1:]} layer {found.names[most]} changed its gradient most, by "
        f"{_number(float(breakdown[most]))} times its size{left_out}; deep relative trust "
        f"(model) {says}."
    )


def _say_trust(found: GradientBreakdown) -> str:
    if math.isnan(found.trust_lr) or math.isnan(found.relative_step):
        return ""
    if found.trust_lr <= 0:
        return (
            "Deep relative trust (model) allows no step: in at least one layer the direction "
            "does not lead downhill."
        )
    model = f"deep relative trust (model) allows {_number(found.trust_lr)}"
    if not found.slope_start < 0 or math.isnan(found.descent_limit):
        return f"As relative steps, {model}."
    limit = _relative(found, found.descent_limit, where_finite(found.slope, found.loss))
    even = _relative(found, found.break_even, _rises(found))
    return (
        f"As relative steps, the descent limit is {limit} and the break-even, where the loss is "
        f"back at its start, {even}; {model}."
    )


def _rises(found: GradientBreakdown) -> Tensor:
    """Return the rise of the loss divided by eta, from 0 on."""
    return mean_slopes(found.etas, found.loss_start, found.loss, found.slope_start, found.slope)


def _relative(found: GradientBreakdown, zero: float, values: Tensor) -> str:
    where = _number(min(zero, float(found.etas[-1])) * found.relative_step)
    return where if _crosses(values) else f"beyond {where}"


def _crosses(values: Tensor) -> bool:
    """Return whether values from below reach 0, before they end or stop being finite."""
    ends = values[(values >= 0) | ~values.isfinite()]
    return len(ends) > 0 and bool(ends[0].isfinite())
