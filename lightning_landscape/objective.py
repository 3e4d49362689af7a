"""The loss as a function of the weights: the interface between modules and measures.

`probing` makes an `Objective` from a module, `FunctionObjective` makes one from a formula. A
measure treats both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from lightning_landscape.params import Params

__all__ = ["FunctionObjective", "Objective"]


# Returns the losses at an alpha along a prepared direction, float64 `[n_batches]`. It may have a
# method `each` that takes several alphas and returns `[n_points, n_batches]`.
LossAlong: TypeAlias = Callable[[float], Tensor]


class Objective(Protocol):
    """The loss of a module on fixed batches as a function of its weights.

    The same weights always give the same bits, whatever was evaluated before. Your own objective
    may omit `mode`, `gather`, and the method `each` of what `along` returns. Without `gather` it
    has no batches on other processes.
    """

    @property
    def mode(self) -> str:
        """How the network is run, or `"function"`."""
        ...

    @property
    def params(self) -> Params:
        """The weights at `alpha = 0`, called the point."""
        ...

    def along(self, direction: Params) -> LossAlong:
        """Prepare a direction; return a function from alpha to the losses `[n_batches]`."""
        ...

    def gather(self, losses: Tensor) -> Tensor:
        """Return the losses of all processes: `[n_points, n_batches]`, joined along batches."""
        ...

    def losses(self, direction: Params | None = None, alpha: float = 0.0) -> Tensor:
        """Return the float64 losses `[n_batches]` at `params + alpha * direction`."""
        ...

    def at(self, params: Params) -> Objective:
        """Return the same loss with another point; use it before the next call of `at`."""
        ...

    def gradient(
        self, direction: Params | None = None, alpha: float = 0.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses and the gradient of their mean, averaged over ranks."""
        ...


class FunctionObjective:
    """An analytic objective: a formula over named tensors.

    Args:
        loss: Takes the weights, returns a scalar loss, or one per batch, `[n_batches]`.
        params: The point; copied.

    Example:
        >>> bowl = FunctionObjective(lambda p: (p["x"] ** 2).sum(), {"x": torch.tensor([1.0, 0.0])})
        >>> bowl.losses({"x": torch.tensor([1.0, 0.0])}, 2.0)
        tensor([9.], dtype=torch.float64)
    """

    mode: str = "function"

    def __init__(self, loss: Callable[[Params], Tensor], params: Params) -> None:
        self._loss = loss
        self._params = {name: tensor.detach().clone() for name, tensor in params.items()}

    @property
    def params(self) -> Params:
        """The weights at `alpha = 0`."""
        return self._params

    def at(self, params: Params) -> FunctionObjective:
        """Return the same formula with another point."""
        check_direction(params, self._params)
        return FunctionObjective(self._loss, {**self._params, **params})

    def along(self, direction: Params) -> LossAlong:
        """Return a function from alpha to the losses at `params + alpha * direction`."""
        check_direction(direction, self._params)
        return lambda alpha: self._evaluate(self._moved(direction, alpha))

    def gather(self, losses: Tensor) -> Tensor:
        """Return the losses unchanged: a formula has no batches on other processes."""
        return losses

    def losses(self, direction: Params | None = None, alpha: float = 0.0) -> Tensor:
        """Return the losses at one point, float64 `[n_batches]`; one evaluation."""
        return self.along(direction or {})(alpha)

    def gradient(
        self, direction: Params | None = None, alpha: float = 0.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses at one point and the gradient of their mean; one evaluation."""
        check_direction(direction or {}, self._params)
        leaves = {
            name: tensor.requires_grad_()
            for name, tensor in self._moved(direction or {}, alpha).items()
        }
        with torch.enable_grad():
            losses = torch.as_tensor(self._loss(leaves)).reshape(-1)
            # a loss that depends on no weight is flat: its gradient is zero, not an error
            mean = losses.mean() if losses.requires_grad else torch.zeros((), requires_grad=True)
            gradients = torch.autograd.grad(
                mean, list(leaves.values()), allow_unused=True, materialize_grads=True
            )
        return losses.detach().double(), dict(zip(leaves, gradients, strict=True))

    def _moved(self, direction: Params, alpha: float) -> dict[str, Tensor]:
        return {
            name: torch.add(tensor, direction[name].to(tensor), alpha=alpha)
            if name in direction and alpha
            else tensor.clone()
            for name, tensor in self._params.items()
        }

    def _evaluate(self, params: Params) -> Tensor:
        with torch.no_grad():
            return torch.as_tensor(self._loss(params)).detach().reshape(-1).double()


def mode_of(objective: Objective) -> str:
    """Return the mode of an objective; `"function"` if it has none."""
    return getattr(objective, "mode", "function")


def gather_losses(objective: Objective, losses: Tensor) -> Tensor:
    """Return the losses of all processes: `[n_points, n_batches]`, joined along the batches.

    An objective without `gather` has no batches on other processes: its losses are returned.
    """
    gather: Callable[[Tensor], Tensor] | None = getattr(objective, "gather", None)
    return losses if gather is None else gather(losses)


def losses_at(objective: Objective, loss: LossAlong, alphas: list[float]) -> Tensor:
    """Return the losses at some alphas, on the batches of all processes, `[n_points, n_batches]`.

    Args:
        objective: What is evaluated.
        loss: What its `along` returned; asked by `loss.each` if there is one.
        alphas: How far.
    """
    each: Callable[[list[float]], Tensor] | None = getattr(loss, "each", None)
    losses = torch.stack([loss(alpha) for alpha in alphas]) if each is None else each(alphas)
    return gather_losses(objective, losses)


def check_direction(direction: Params, params: Mapping[str, Tensor]) -> None:
    """Raise a `ValueError` unless `params` has every name of the direction in the same shape."""
    for name, tensor in direction.items():
        if name not in params:
            raise ValueError(
                "`direction` must only name parameters of the objective. "
                f"Got {name!r}; known are {list(params)[:5]}{' ...' if len(params) > 5 else ''}."
            )
        if tensor.shape != params[name].shape:
            raise ValueError(
                f"`direction` must have the shapes of the parameters. Got {tuple(tensor.shape)} "
                f"for {name!r}, which has {tuple(params[name].shape)}."
            )
