"""A module as an objective: its losses and gradients as functions of its weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_landscape.engine.batches import Batches, KeptBatch
from lightning_landscape.engine.evaluator import Evaluator
from lightning_landscape.engine.isolation import Isolation, Mode
from lightning_landscape.engine.lockstep import Lockstep
from lightning_landscape.engine.steps import Step
from lightning_landscape.engine.tensors import same_bits
from lightning_landscape.engine.weights import Path
from lightning_landscape.objective import LossAlong, Objective, check_direction
from lightning_landscape.params import Params
from lightning_landscape.ranks import agree, average_over_ranks, gather_batches, n_ranks

T = TypeVar("T")


class ModuleObjective:
    """The loss of a module on fixed batches as a function of its trainable weights.

    `probing` makes it; use it inside that context only. The first evaluations are recorded: after
    each one everything is compared, to find out what evaluations write.

    Attributes:
        mode: How the module is run.
        n_evaluations: Number of evaluations so far, with those that were recorded.
        seconds: Seconds of the last recorded evaluation; nan before.
        verifies: Whether every evaluation is recorded, and not only the first ones.
    """

    def __init__(
        self,
        module: nn.Module,
        isolation: Isolation,
        step: Step,
        batches: list[KeptBatch],
        *,
        mode: Mode,
        trainer: Any | None,
        lockstep: Lockstep | None = None,
    ) -> None:
        self.mode = mode
        self.n_evaluations = 0
        self.seconds = math.nan
        self.verifies = False
        self._isolation = isolation
        self._params = isolation.params
        self._copied_params: Params | None = None
        self._started_at: Params | None = None  # None: the point of the opening
        self._device = next(iter(self._params.values())).device
        self._batches = Batches(batches, self._device)
        self._alone = n_ranks() == 1
        self._lockstep = lockstep or Lockstep(alone=True)
        self._failure: Exception | None = None  # of this rank, raised in the next collective
        self._evaluator = Evaluator(
            module,
            isolation,
            step,
            self._batches,
            recalibrated=mode == "recalibrated",
            trainer=trainer,
        )
        # how many evaluations of each kind must still be recorded
        self._unrecorded = {"losses": 2, "gradient": 2}

    @property
    def params(self) -> Params:
        """The trainable weights at `alpha = 0`; a copy, which may be written to."""
        if self._copied_params is None:
            self._copied_params = self._isolation.copied_params()
        return self._copied_params

    @property
    def live(self) -> Params:
        """The trainable weights of the module on opening; do not write to them."""
        return self._isolation.live

    @property
    def outside(self) -> dict[str, str]:
        """What the module holds that is not searched, by name, and why."""
        return self._isolation.outside

    def at(self, params: Params) -> Objective:
        """Return the same loss with another point; use it before the next call of `at`."""
        check_direction(params, self._params)
        return _AtOtherPoint(self, params)

    def along(self, direction: Params) -> LossAlong:
        """Return a function from alpha to the losses at `params + alpha * direction`."""
        check_direction(direction, self._params)
        self._start_at(None)
        return _Along(self, self._isolation.path(direction))

    def losses(self, direction: Params | None = None, alpha: float = 0.0) -> Tensor:
        """Return the losses at one point, float64 `[n_batches]`; one evaluation."""
        return self.along(direction or {})(alpha)

    def gradient(
        self, direction: Params | None = None, alpha: float = 0.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses at one point and the gradient of their mean, averaged over ranks.

        One evaluation, forward and backward. Unused parameters have a gradient of zero.
        """
        check_direction(direction or {}, self._params)
        self._start_at(None)
        return self._gradient_along(direction or {}, alpha)

    def _gradient_along(self, direction: Params, alpha: float) -> tuple[Tensor, dict[str, Tensor]]:
        path = self._isolation.path(direction)
        found = self._in_lockstep(lambda: self._checked_gradient(path, alpha))
        self._agree()
        assert found is not None
        losses, gradients = found
        return losses, dict(zip(self._params, average_over_ranks(gradients), strict=True))

    def prepare(self) -> None:
        """Make the two evaluations that find out what losses write, unless they were made."""
        self._in_lockstep(self._prepare_losses)
        self._agree()

    def gather(self, losses: Tensor) -> Tensor:
        """Return the losses of all ranks: `[n_points, n_batches]`, joined along the batches."""
        if self._alone:
            return losses
        self._agree()
        return gather_batches(losses)

    @property
    def needs_checks(self) -> bool:
        """True if evaluations must still be compared with the state they started from."""
        return bool(self._unrecorded["losses"]) or self.verifies or not self._alone

    def losses_at(self, path: Path, alphas: list[float]) -> list[list[float]]:
        """Return the losses at some alphas, with as little work between two passes as possible."""
        rows: list[list[float]] = []
        with torch.set_grad_enabled(self._evaluator.with_graph):
            for alpha in alphas:
                self._isolation.move(path, alpha)
                self.n_evaluations += 1
                rows.append(self._evaluator.run(Tensor.item))
        return rows

    def _start_at(self, at: Params | None) -> None:
        """Start evaluations at other weights, or at those of the opening."""
        if at is not self._started_at:
            self._isolation.start_at(at)
            self._started_at = at

    def close(self) -> None:
        """Raise the exception of this rank, if no collective has raised it."""
        if self._failure is not None:
            raise self._failure

    def _losses(self, path: Path, alpha: float) -> Tensor:
        found = self._in_lockstep(lambda: self._checked_losses(path, alpha))
        if found is None:  # it failed: `gather` raises on every rank
            return torch.full((len(self._batches),), math.nan, dtype=torch.float64)
        return found

    def _in_lockstep(self, evaluate: Callable[[], T]) -> T | None:
        """Store an exception and raise it in the next collective, so that no rank deadlocks."""
        if self._alone:
            return evaluate()
        if self._failure is not None:
            return None
        try:
            with self._lockstep.section():  # the step may call a collective
                return evaluate()
        except Exception as error:
            self._failure = error
            return None

    def _agree(self) -> None:
        """Raise on every rank if one has failed."""
        try:
            agree(self._failure, self._device)
        except Exception:
            self._lockstep.finish_failure()
            raise

    def _checked_losses(self, path: Path, alpha: float) -> Tensor:
        self._prepare_losses()
        return self._evaluate("losses", path, alpha, self._evaluator.forward)

    def _checked_gradient(self, path: Path, alpha: float) -> tuple[Tensor, list[Tensor]]:
        self._prepare_losses()
        self._prepare_gradient()
        return self._evaluate("gradient", path, alpha, self._evaluator.gradient)

    def _prepare_losses(self) -> None:
        """Record what losses at the point write, and find out whether they need a graph.

        Losses without a graph are cheaper, but some kernels and some steps then give other bits.
        """
        if self._unrecorded["losses"] < 2:
            return
        with_graph, self._evaluator.with_graph = self._evaluator.with_graph, True
        if with_graph:
            self._evaluate("losses", Path(), 0.0, self._evaluator.forward)
            return
        losses = self._evaluate("losses", Path(), 0.0, self._evaluator.forward_with_outputs)
        self._evaluator.with_graph = False
        try:
            again = self._record(Path(), 0.0, self._evaluator.forward_with_outputs)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:  # the step takes gradients itself
            self._evaluator.with_graph = True
        else:
            self._evaluator.with_graph = not same_bits(losses, again)

    def _prepare_gradient(self) -> None:
        """Record what a gradient at the point writes, and find out how it can be taken."""
        if self._unrecorded["gradient"] < 2:
            return
        try:
            self._evaluate("gradient", Path(), 0.0, self._evaluator.gradient)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # reentrant checkpoints refuse `autograd.grad`
            self._evaluator.by_backward = True
            try:
                self._evaluate("gradient", Path(), 0.0, self._evaluator.gradient)
            except RuntimeError:
                raise error from None

    def _evaluate(self, kind: str, path: Path, alpha: float, evaluate: Callable[[], Any]) -> Any:
        """Evaluate at an alpha; record the evaluation while too few of its kind were recorded."""
        left = self._unrecorded[kind]
        # the first recorded one is at the point, the second is the first that moves weights
        if left == 2 or (left and path.moving and alpha) or self.verifies:
            result = self._record(path, alpha, evaluate)
            self._unrecorded[kind] = max(left - 1, 0)
            return result
        self._isolation.move(path, alpha)
        self.n_evaluations += 1
        return evaluate()

    def _record(self, path: Path, alpha: float, evaluate: Callable[[], Any]) -> Any:
        self._isolation.move(path, alpha)
        self.n_evaluations += 1
        began, noting = time.monotonic(), self._evaluator.seconds_noting
        try:
            result = evaluate()
            noting = self._evaluator.seconds_noting - noting
            self.seconds = time.monotonic() - began - noting
        finally:
            self._isolation.record(path, alpha)
        return result


class _AtOtherPoint:
    """An objective with another point; it belongs to a `ModuleObjective`."""

    def __init__(self, objective: ModuleObjective, params: Params) -> None:
        self.params = params
        self.mode: str = objective.mode
        self.gather = objective.gather
        self._objective = objective

    def at(self, params: Params) -> Objective:
        return self._objective.at(params)

    def along(self, direction: Params) -> LossAlong:
        check_direction(direction, self.params)
        self._objective._start_at(self.params)
        return _Along(self._objective, self._objective._isolation.path(direction))

    def losses(self, direction: Params | None = None, alpha: float = 0.0) -> Tensor:
        return self.along(direction or {})(alpha)

    def gradient(
        self, direction: Params | None = None, alpha: float = 0.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        check_direction(direction or {}, self.params)
        self._objective._start_at(self.params)
        return self._objective._gradient_along(direction or {}, alpha)


class _Along:
    """The losses along one prepared direction."""

    def __init__(self, objective: ModuleObjective, path: Path) -> None:
        self._objective = objective
        self._path = path

    def __call__(self, alpha: float) -> Tensor:
        """Return the losses at an alpha, float64 `[n_batches]`."""
        return self._objective._losses(self._path, alpha)

    def each(self, alphas: list[float]) -> Tensor:
        """Return the losses at some alphas, float64 `[n_points, n_batches]`."""
        if self._objective._device.type != "cpu":  # reading a loss waits for the device
            return torch.stack([self(alpha) for alpha in alphas])
        rows: list[list[float]] = []
        while len(rows) < len(alphas) and self._objective.needs_checks:
            rows.append(self(alphas[len(rows)]).tolist())
        rows += self._objective.losses_at(self._path, alphas[len(rows) :])
        return torch.tensor(rows, dtype=torch.float64)
