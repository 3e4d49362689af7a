"""What a probe takes: in evaluations, and in seconds once its first directions are measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_landscape.measures.directions import Normalize, sample_direction
from lightning_landscape.objective import LossAlong, Objective
from lightning_landscape.params import Params

LAST_PROBE = 10.0
"""Seconds that a probe at the end of fit may take over the budget."""

_FEWEST = 3  # directions of that probe, however long they take
_TIMED = 2  # the first one also compares the module with its snapshot


class TimedObjective:
    """An objective that tells once what a direction, or a gradient, takes.

    A direction is timed from one call of `along` to the next: sampling it, moving the weights and
    evaluating, and whatever else happens in between. Likewise a gradient at moved weights. All else
    is the objective's own.

    Args:
        objective: The objective.
        tell: Is called with the seconds that the second direction or gradient took.
    """

    def __init__(self, objective: Objective, tell: Callable[[float], None]) -> None:
        self._objective = objective
        self._tell = tell
        self._times: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def along(self, direction: Params) -> LossAlong:
        """Return the loss along a direction."""
        self._note()
        return self._objective.along(direction)

    def gradient(
        self, direction: Params | None = None, alpha: float = 0.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses at one point, and the gradient of their mean."""
        if direction:
            self._note()
        return self._objective.gradient(direction, alpha)

    def _note(self) -> None:
        if len(self._times) <= _TIMED:
            self._times.append(time.monotonic())
            if len(self._times) > _TIMED:
                self._tell(self._times[-1] - self._times[-2])


def seconds_besides(
    objective: Objective, module: nn.Module, family: str, normalize: Normalize, n_points: int
) -> float:
    """Return what moving the weights takes besides an evaluation, before one was moved.

    A direction is sampled and prepared once for its points; each of them writes the weights.
    """
    began = time.monotonic()
    direction = sample_direction(
        objective.params,
        family,
        module=module,
        generator=torch.Generator().manual_seed(0),
        normalize=normalize,
    )
    objective.along(direction)
    sampled = time.monotonic()
    ends = [torch.add(weight, weight).flatten()[:1] for weight in objective.params.values()]
    float(ends[-1])  # waits for the device
    return (sampled - began) / n_points + time.monotonic() - sampled


@dataclass(frozen=True)
class ProbePlan:
    """What a probe along random directions evaluates.

    Attributes:
        n_families: Families of directions.
        n_points: Alphas per direction.
        n_whole: Directions per family whose slices are always whole.
        n_most: Directions per family at most.
        n_line: Points of the line to the average; 0 without one.

    Example:
        >>> plan = ProbePlan(n_families=3, n_points=13, n_whole=8, n_most=8, n_line=31)
        >>> plan.n_least, plan.directions_within(seconds=10.0, each=0.05)
        (343, 4)
    """

    n_families: int
    n_points: int
    n_whole: int
    n_most: int
    n_line: int = 0

    @property
    def n_least(self) -> int:
        """Evaluations in a probe, at least."""
        return self.n_families * self.n_whole * self.n_points + self.n_line

    @property
    def n_evaluations(self) -> int:
        """Evaluations in a probe, at most: of further directions the centre is known."""
        further = self.n_most - self.n_whole
        return self.n_least + self.n_families * further * (self.n_points - 1)

    def directions_within(self, seconds: float, each: float) -> int:
        """Return how many directions per family fit into some seconds.

        Args:
            seconds: The time there is.
            each: Seconds that an evaluation takes.
        """
        if not (self.n_families and each):
            return self.n_most
        affordable = int(seconds / each) - self.n_line
        whole = self.n_families * self.n_points
        if affordable < self.n_whole * whole:
            return max(affordable // whole, 0)
        further = (affordable - self.n_whole * whole) // (whole - self.n_families)
        return min(self.n_whole + further, self.n_most)

    def affordable(self, seconds: float, each: float, *, is_last: bool) -> int:
        """Return how many directions per family a probe samples that is made in any case.

        Args:
            seconds: The time that the budget leaves.
            each: Seconds that an evaluation takes.
            is_last: The weights are the last of a fit: the probe may take ten seconds whatever the
                budget leaves, and three directions whatever they take. Any other is whole at least.
        """
        if is_last:
            seconds = max(seconds, LAST_PROBE)
        fewest = min(_FEWEST, self.n_whole) if is_last else self.n_whole
        return max(self.directions_within(seconds, each), fewest)

    def seconds(self, direction: float, evaluation: float, moved: Sequence[int]) -> float:
        """Return what a probe will take, from what one direction of the first family took.

        The others evaluate as much as it does, and sample and move the weights of their own group.

        Args:
            direction: Seconds that the direction took.
            evaluation: Seconds of one evaluation that moves nothing.
            moved: How many weights each family moves, one or more.
        """
        passes = min(self.n_points * evaluation, direction)
        moving = (direction - passes) * sum(moved) / moved[0]
        line = self.n_line / self.n_points * direction
        return line + self.n_whole * (len(moved) * passes + moving)
