"""Progress with the time left, on a terminal; silent elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor
from tqdm import tqdm

from lightning_landscape.engine.objective import ModuleObjective
from lightning_landscape.measures.words import counted
from lightning_landscape.objective import Objective


def progress_bar(
    objective: ModuleObjective, n_evaluations: int, n_batches: int, unit: str, *, shown: bool
) -> tqdm[Any]:
    """Print what a measurement will cost, and return a bar; its `update` counts evaluations.

    Args:
        objective: What will be evaluated.
        n_evaluations: How often.
        n_batches: Forward passes in each of them.
        unit: The name of what is measured.
        shown: Whether to print the cost, and the bar if standard error is a terminal.
    """
    if shown:
        objective.prepare()
        print(
            f"{n_evaluations} evaluations of {counted(n_batches, 'batch')} = "
            f"{n_evaluations * n_batches} "
            f"forward passes, about {n_evaluations * objective.seconds:.2g} s",
            file=sys.stderr,
        )
    hidden = not (shown and sys.stderr.isatty())
    return tqdm(total=n_evaluations, desc=unit, unit="pass", leave=False, disable=hidden)


class Counted:
    """An objective that says after each slice how many evaluations it took."""

    def __init__(self, objective: Objective, advance: Callable[[int], object]) -> None:
        self._objective = objective
        self._advance = advance

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def gather(self, losses: Tensor) -> Tensor:
        """Return the losses of all processes, `[n_points, n_batches]`."""
        self._advance(len(losses))
        return self._objective.gather(losses)
