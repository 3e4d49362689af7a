"""Progress with the time left, on a terminal; silent elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor
from tqdm import tqdm

from lightning_landscape.objective import LossAlong, Objective, losses_at
from lightning_landscape.params import Params

Advance = Callable[[int], object]


def progress_bar(total: int, unit: str, *, shown: bool) -> tqdm[Any]:
    """Return a bar of how many evaluations are made, of how many; its `update` counts some more.

    Args:
        total: How many there will be.
        unit: What is being measured, for people.
        shown: Whether to show it where the standard error stream is a terminal.
    """
    hidden = not (shown and sys.stderr.isatty())
    return tqdm(total=total, desc=unit, unit="pass", leave=False, disable=hidden)


def say_cost(n_evaluations: int, n_batches: int, seconds: float) -> None:
    """Say what a measurement will cost, before it is spent.

    Args:
        n_evaluations: How many evaluations it makes.
        n_batches: Forward passes in each of them.
        seconds: What one of them took.
    """
    print(
        f"{n_evaluations} evaluations of {n_batches} batches = {n_evaluations * n_batches} forward "
        f"passes, about {n_evaluations * seconds:.2g} s",
        file=sys.stderr,
    )


class Counted:
    """An objective that says after each evaluation along a direction that it was made."""

    def __init__(self, objective: Objective, advance: Advance) -> None:
        self._objective = objective
        self._advance = advance

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def along(self, direction: Params) -> LossAlong:
        """Return a function from alpha to the losses at `params + alpha * direction`."""
        return _CountedAlong(self._objective.along(direction), self._advance)


class _CountedAlong:
    def __init__(self, along: LossAlong, advance: Advance) -> None:
        self._along = along
        self._advance = advance

    def __call__(self, alpha: float) -> Tensor:
        losses = self._along(alpha)
        self._advance(1)
        return losses

    def each(self, alphas: list[float]) -> Tensor:
        losses = losses_at(self._along, alphas)
        self._advance(len(alphas))
        return losses
