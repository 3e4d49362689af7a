"""The settings of SWA: what is refused at construction and at the start of fit, and why."""

from __future__ import annotations

import math
from typing import Any

import torch

from lightning_landscape._lightning import ConfigurationError
from lightning_landscape.callbacks.average import Average
from lightning_landscape.checks import is_number


def refuse_impatience(trainer: Any, name: str, first_epoch: int) -> None:
    """Raise if a callback would stop the fit while there is no average yet."""
    n_before = first_epoch // (trainer.check_val_every_n_epoch or 1)
    for callback in trainer.callbacks:
        if getattr(callback, "monitor", None) != name:
            continue
        who = f"{type(callback).__name__}(monitor={name!r})"
        if getattr(callback, "check_finite", False):
            raise ConfigurationError(
                f"`check_finite` of {who} must be False: there is no average before the start, "
                "and until then the metric is nan."
            )
        patience = getattr(callback, "patience", n_before + 1)
        if patience <= n_before:
            raise ConfigurationError(
                f"`patience` of {who} must be more than {n_before}, the validations before the "
                f"average begins: until then the metric is nan, which is no improvement. Got "
                f"{patience}: be more patient, or let SWA start earlier."
            )


def checked_average(average: Average, decay: float) -> Average:
    """Return a kind of average that there is; refuse a decay that is none."""
    if not callable(average) and average not in ("equal", "ema", "latest"):
        raise ConfigurationError(
            f"`average` must be 'equal', 'ema', 'latest' or a function. Got {average!r}."
        )
    if not (is_number(decay) and 0 <= decay < 1):
        raise ConfigurationError(f"`decay` must be at least 0 and below 1. Got {decay!r}.")
    return average


def checked_device(device: str | None) -> str | None:
    """Return a device that this machine has."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"`device` must be one this machine has, such as 'cpu', or None. Got {device!r}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return device


def checked_start(start: float) -> int | float:
    """Return an epoch or a share of the training."""
    whole = isinstance(start, int) and not isinstance(start, bool)
    if (whole and start >= 0) or (isinstance(start, float) and 0 <= start < 1):
        return start
    raise ConfigurationError(
        "`start` must be an epoch, a whole number from 0 up, or a share of the training, a "
        f"fraction from 0 to below 1. Got {start!r}."
    )


def resolved_start(start: int | float, trainer: Any) -> tuple[int, int]:
    """Return the first epoch and the first step, 0 being the first, that may be averaged."""
    if isinstance(start, int):
        return start, 0
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        return math.floor(start * trainer.max_epochs + 1e-9), 0
    if trainer.max_steps is not None and trainer.max_steps > 0:
        return 0, math.floor(start * trainer.max_steps + 1e-9) + 1
    raise ConfigurationError(
        "`start` can only be a share of `max_epochs` or `max_steps`, and this Trainer has neither. "
        f"Got {start}: set one of them, or give `start` as an epoch."
    )
