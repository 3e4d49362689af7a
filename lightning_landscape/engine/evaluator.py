"""One evaluation: the passes of a module over fixed batches, at its present weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from lightning_landscape._lightning import precision_context
from lightning_landscape.engine.batch_norm import batch_norms, estimating
from lightning_landscape.engine.batches import Batches, clone_batch
from lightning_landscape.engine.compiled import is_compiled
from lightning_landscape.engine.isolation import Isolation
from lightning_landscape.engine.steps import Step
from lightning_landscape.engine.tensors import is_batched, plain
from lightning_landscape.params import widest
from lightning_landscape.sharding import is_sharded

T = TypeVar("T")


_HEADROOM = 64.0  # how many times smaller than in training the scale of a loss is


class Evaluator:
    """The passes of an isolated module over its batches.

    Attributes:
        with_graph: Whether losses are computed with a graph, though no backward pass follows.
        by_backward: Whether gradients come from `backward` instead of `autograd.grad`.
        seconds_noting: Seconds that the sums of `forward_with_outputs` have taken in all.
    """

    def __init__(
        self,
        module: nn.Module,
        isolation: Isolation,
        step: Step,
        batches: Batches,
        *,
        recalibrated: bool,
        trainer: Any | None,
    ) -> None:
        self.seconds_noting = 0.0
        self._isolation = isolation
        self._step = step
        self._trainer = trainer
        self._batches = batches
        self._norms = list(batch_norms(module).values()) if recalibrated else []
        # without a graph a compiled step does not run its compiled code
        self.with_graph = is_compiled(module)
        # the step uses whole tensors: only `backward` brings their gradients to the shards
        self.by_backward = any(map(is_sharded, isolation.trainable.values()))

    def forward(self) -> Tensor:
        """Return the losses, float64 `[n_batches]`."""
        return _wide(self.run(_copied))

    def run(self, read: Callable[[Tensor], T]) -> list[T]:
        """Return the losses. Each is read before the next step, which may write to it."""
        if torch.is_grad_enabled() is not self.with_graph:
            with torch.set_grad_enabled(self.with_graph):
                return self.run(read)
        if self._norms:
            self._recalibrate()
        with precision_context(self._trainer):
            return [read(self._loss(i, batch)) for i, batch in self._batches]

    def forward_with_outputs(self) -> Tensor:
        """Return the losses, and with them the sum of each output of each module.

        Two kernels with different bits often give the same loss by chance.
        """
        sums: list[Tensor] = []

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            began = time.monotonic()
            for tensor in output if isinstance(output, (tuple, list)) else [output]:
                if type(tensor) is Tensor and tensor.is_floating_point() and not is_batched(tensor):
                    sums.append(tensor.detach().sum(dtype=widest(tensor.device)))
            self.seconds_noting += time.monotonic() - began

        hook = register_module_forward_hook(note)
        try:
            losses = self.forward()
            return torch.cat([losses, *(total.reshape(1).to(losses.device) for total in sums)])
        finally:
            hook.remove()

    def gradient(self) -> tuple[Tensor, list[Tensor]]:
        """Return the losses, and the gradient of their mean in the order of the weights."""
        self._isolation.remove_gradients()  # an earlier step may have frozen a weight
        if self._norms:
            self._recalibrate()
        weights = list(self._isolation.trainable.values())
        total: list[Tensor] = []
        scale, losses = loss_scale(self._trainer), []
        for i, batch in self._batches:
            with precision_context(self._trainer), torch.enable_grad():
                loss = self._loss(i, batch)
            losses.append(_copied(loss))
            share = loss / (len(self._batches) / scale)
            shares = self._differentiate(share, weights)
            if total:
                torch._foreach_add_(total, shares)
            else:  # free each before the next is copied, to save the memory of a gradient
                shares.reverse()
                total = [torch.zeros_like(weight).add_(shares.pop()) for weight in weights]
        if scale != 1:
            torch._foreach_div_(total, scale)
        return _wide(losses), total

    def _differentiate(self, loss: Tensor, weights: list[Tensor]) -> list[Tensor]:
        if not loss.requires_grad:
            return [torch.zeros_like(weight) for weight in weights]
        keep = self._isolation.keeps_graph
        if not self.by_backward:
            return list(
                torch.autograd.grad(
                    loss, weights, retain_graph=keep, allow_unused=True, materialize_grads=True
                )
            )
        before = [weight.grad for weight in weights]  # from a step that calls `backward` itself
        for weight in weights:
            weight.grad = None
        loss.backward(retain_graph=keep)
        gradients = [
            torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights
        ]
        for weight, gradient in zip(weights, before, strict=True):
            weight.grad = gradient
        return gradients

    def _loss(self, index: int, batch: Any) -> Tensor:
        loss = output = self._step(batch, index)
        if type(output) is Tensor and not output.ndim:
            return output
        if not isinstance(output, Tensor) and isinstance(output, Mapping):
            loss = output.get("loss", output)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise TypeError(
                "The step must return its loss as a tensor with one element, or a dict with one "
                f"under 'loss'. Got {_shown(loss)}."
            )
        loss = plain(loss)
        return loss.reshape(()) if loss.ndim else loss

    def _recalibrate(self) -> None:
        with (
            estimating(self._norms),
            precision_context(self._trainer),
            torch.set_grad_enabled(self.with_graph),  # the step may take gradients itself
        ):
            for i, batch in self._batches.calibrating():
                self._loss(i, clone_batch(batch))


def _copied(loss: Tensor) -> Tensor:
    return loss.detach().clone()


def _wide(losses: list[Tensor]) -> Tensor:
    stacked = torch.stack(losses)
    return (stacked.cpu() if stacked.device.type == "mps" else stacked).double()


def _shown(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a dict of {list(output)}"
    return "None: this batch was skipped" if output is None else type(output).__name__


def loss_scale(trainer: Any | None) -> float:
    """Return the factor for a loss before its gradient is taken; 1 without a GradScaler.

    Without it small gradients vanish in half precision. It is smaller than in training, where the
    scale is close to overflow: gradients at moved weights are larger.
    """
    scaler = None if trainer is None else getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None or not scaler.is_enabled() else scaler.get_scale() / _HEADROOM
