"""What the arguments of `Fromage` and of its factory `fromage` may be."""

from __future__ import annotations

import math
import warnings
from numbers import Real
from typing import Any

from torch import nn

from lightning_landscape.checks import is_number
from lightning_landscape.measures.breakdown import trust_lr


def parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a module, one or more.

    Raises:
        TypeError: If it is no module.
        ValueError: If it has none.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"`module` must be the module itself, not its parameters. Got {type(module).__name__}. "
            "Use fromage(self), or Fromage(self.parameters())."
        )
    if not (params := list(module.parameters())):
        raise ValueError(
            f"`module` must have parameters. {type(module).__name__} has none: call fromage once "
            "its layers are there."
        )
    return params


def check_parameters(params: Any) -> None:
    """Raise a TypeError if the parameters are a module."""
    if isinstance(params, nn.Module):
        name = type(params).__name__
        raise TypeError(
            f"`params` must be parameters, not their module. Got {name}: use "
            "Fromage(module.parameters()), or fromage(module)."
        )


def checked_rate(lr: float) -> float:
    """Return a rate; warn of one that is no fraction: what is out of range is refused later."""
    if is_number(lr) and lr > 1:
        warnings.warn(
            f"`lr` is a relative step, a fraction of the norm of each tensor. Got {lr!r}, with "
            "which a step is longer than the weights: try 0.01.",
            stacklevel=3,
        )
    return lr


def depth_rate(params: list[nn.Parameter]) -> float:
    """Return a quarter of `trust_lr(L)`, where L counts the trainable tensors that are matrices.

    Raises:
        ValueError: If there is none.
    """
    n_layers = sum(p.requires_grad and p.ndim >= 2 for p in params)
    if not n_layers:
        raise ValueError(
            "`lr='depth'` needs a trainable tensor with two dimensions or more; the module has"
            " none. Give `lr` a number."
        )
    return 0.25 * trust_lr(n_layers)


def training_steps(module: Any, given: int | None) -> int:
    """Return the number of optimizer steps of a training: the given one, or what its trainer says.

    Raises:
        ValueError: If it is unknown, or no number of steps.
    """
    try:
        trainer = module.trainer
    except (AttributeError, RuntimeError):  # no LightningModule, or one without a trainer
        trainer = None
    steps = getattr(trainer, "estimated_stepping_batches", None) if given is None else given
    if not is_number(steps) or steps < 1:
        raise ValueError(
            "`decay='cosine'` needs the length of the training, a finite number of steps from 1."
            f" Got {steps!r}. Give `total_steps`, or set `max_epochs` or `max_steps` of the"
            " Trainer."
        )
    return int(steps)


def check_group(group: dict[str, Any]) -> None:
    """Raise if a parameter group has settings of another type, or out of range.

    Raises:
        TypeError: If one has another type.
        ValueError: If one is out of range.
    """
    lr, bound = group["lr"], group["p_bound"]
    numbers = [("lr", lr, "For `lr='depth'` use fromage(module, lr='depth').")]
    if bound is not None:
        numbers += [("p_bound", bound, "Try 2.0, or None for no bound.")]
    for name, value, way_out in numbers:
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"`{name}` must be a number. Got {value!r}. {way_out}")
    if not 0 <= lr < math.inf:
        raise ValueError(f"`lr` must be finite and at least 0. Got {lr!r}. Try 0.01.")
    if bound is not None and not 0 < bound < math.inf:
        raise ValueError(f"`p_bound` must be finite and above 0. Got {bound!r}. Try 2.0, or None.")
    for name in ("prefactor", "trust", "maximize", "foreach"):
        if type(group[name]) is not bool and (name, group[name]) != ("foreach", None):
            raise TypeError(f"`{name}` must be True or False. Got {group[name]!r}.")
