"""The learning rate in use, of optimizers whose step is proportional to it: see `critical_rate`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

# whose step is proportional to `lr`. Not so: LBFGS (searches), Rprop and ASGD (rates of their own),
# Adafactor (at most 1 / sqrt(step)), and whatever wraps another optimizer
_PROPORTIONAL = "SGD Adam AdamW Adamax NAdam RAdam SparseAdam Adagrad Adadelta RMSprop Muon"
_KNOWN = tuple(
    getattr(torch.optim, name) for name in _PROPORTIONAL.split() if hasattr(torch.optim, name)
)
_FROMAGE = "lightning_landscape.fromage", "Fromage"  # to first order, for it also rescales


def rate_in_use(optimizer: Optimizer) -> float:
    """Return the learning rate of an optimizer whose step is proportional to it.

    With several groups it is the largest of those with a trainable parameter: the critical rate is
    then the largest one of them if all are scaled together. nan for an optimizer that is not known
    to make such steps.

    Example:
        >>> weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
        >>> groups = [{"params": weights[0], "lr": 0.1}, {"params": weights[1]}]
        >>> rate_in_use(torch.optim.SGD(groups, lr=0.01))
        0.1
        >>> rate_in_use(torch.optim.LBFGS(weights[:1]))
        nan
    """
    kind = type(optimizer)
    if kind not in _KNOWN and (kind.__module__, kind.__name__) != _FROMAGE:
        return math.nan
    rates = [
        float(group["lr"])
        for group in optimizer.param_groups
        if any(parameter.requires_grad for parameter in group["params"])
    ]
    return max(rates, default=math.nan)


def rates_in_use(
    optimizers: Sequence[Optimizer], parameters: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return for each parameter, by name, the rate of the optimizer that moves it."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    return {
        names[id(parameter)]: rate
        for optimizer, rate in zip(optimizers, map(rate_in_use, optimizers), strict=True)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in names
    }
