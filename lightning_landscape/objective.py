"""The loss as a function of the weights: what everything downstream works on.

A formula makes an `Objective` in microseconds (`FunctionObjective`), a real module makes one
through `probing`; the scores cannot tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from lightning_landscape.params import Params

__all__ = ["FunctionObjective", "Objective"]


# The losses at an alpha along one direction, which was prepared once, float64 `[n_batches]`. It may
# have a method `each` that takes several alphas and returns `[n_points, n_batches]`.
LossAlong: TypeAlias = Callable[[float], Tensor]


class Objective(Protocol):
    """The loss of a module on fixed batches as a function of its weights.

    The same weights always give the same bits, whatever was evaluated before. An objective of your
    own may leave out `mode`, `gather`, and `each` of what `along` returns: it is then a function of
    one process.
    """

    @property
    def mode(self) -> str:
        """How the network is run, or `"function"`."""
        ...

    @property
    def params(self) -> Params:
        """The point, which is where `alpha = 0`."""
        ...

    def along(self, direction: Params) -> LossAlong:
        """Prepare a direction once; the call gives the losses `[n_batches]` at an alpha."""
        ...

    def gather(self, losses: Tensor) -> Tensor:
        """Join the batches of all processes: `[n_points, n_batches]` of each to all of them."""
        ...

    def losses(self, direction: Params | None = None, alpha: float = 0.0) -> Tensor:
        """Return the float64 losses `[n_batches]` at `params + alpha * direction`."""
        ...

    def at(self, params: Params) -> Objective:
        """Return the same loss, standing at other weights; use it before asking for the next."""
        ...

    def gradient(
        self, direction: Params | None = None, alpha: float = 0.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return those losses and the gradient of their mean, averaged over ranks."""
        ...


class FunctionObjective:
    """An analytic objective: a formula over named tensors.

    Args:
        loss: Takes the weights, returns a scalar loss, or one per batch, `[n_batches]`.
        params: The point to stand at; copied.

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
        """The point the objective stands at."""
        return self._params

    def at(self, params: Params) -> FunctionObjective:
        """Return the same formula, standing at other weights."""
        check_direction(params, self._params)
        return FunctionObjective(self._loss, {**self._params, **params})

    def along(self, direction: Params) -> LossAlong:
        """Return a function from alpha to the losses at `params + alpha * direction`."""
        check_direction(direction, self._params)
        return lambda alpha: self._evaluate(self._moved(direction, alpha))

    def gather(self, losses: Tensor) -> Tensor:
        """Return the losses: a formula has no batches on other processes."""
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
    """Return how the network is run: `"function"` for an objective that does not say."""
    return getattr(objective, "mode", "function")


def gather_losses(objective: Objective, losses: Tensor) -> Tensor:
    """Join the batches of all processes: `[n_points, n_batches]` of each to all of them.

    Once per slice, or per pair where every pair decides whether there is another. An objective
    without `gather` is of one process.
    """
    gather: Callable[[Tensor], Tensor] | None = getattr(objective, "gather", None)
    return losses if gather is None else gather(losses)


def losses_at(loss: LossAlong, alphas: list[float]) -> Tensor:
    """Return the losses at some alphas, `[n_points, n_batches]`; together if `loss` has `each`."""
    each: Callable[[list[float]], Tensor] | None = getattr(loss, "each", None)
    return torch.stack([loss(alpha) for alpha in alphas]) if each is None else each(alphas)


def check_direction(direction: Params, params: Mapping[str, Tensor]) -> None:
    """Raise a `ValueError` unless every tensor of the direction has its twin in `params`."""
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
