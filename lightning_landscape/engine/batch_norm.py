"""Batch-norm statistics estimated anew: running ones are wrong for other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_landscape._lightning import (
    ConfigurationError,
    attached_trainer,
    precision_context,
    user_step,
)
from lightning_landscape.engine.batches import Batches, KeptBatch, clone_batch, prepared
from lightning_landscape.engine.isolation import Isolation
from lightning_landscape.engine.snapshot import put_back
from lightning_landscape.engine.weights import Path
from lightning_landscape.params import Params

__all__ = [
    "batch_norms",
    "estimate_batch_norm",
    "estimating",
    "recalibrate_batch_norm",
    "runner",
]


def recalibrate_batch_norm(module: nn.Module, batches: Iterable[Any]) -> None:
    """Re-estimate a module's batch-norm statistics on some batches, at its present weights.

    The running mean and variance of each batch norm become the mean over the batches of the
    batches' mean and unbiased variance. Nothing else about the module changes: no dropout, no
    random numbers drawn, no flags left over. Costs one forward pass a batch.

    Args:
        module: A LightningModule, whose `training_step` is run, or any module, which is called with
            the batch or the first element of it.
        batches: Batches as a dataloader yields them.

    Raises:
        ValueError: If there are no batches.

    References:
        Izmailov et al. (2018), arXiv:1803.05407, section 3.2.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> recalibrate_batch_norm(norm, [torch.tensor([[1.0], [3.0]])])
        >>> norm.running_mean, norm.running_var
        (tensor([2.]), tensor([2.]))
    """
    kept = [KeptBatch(clone_batch(batch), i, raw=True) for i, batch in enumerate(batches)]
    if not kept:
        raise ValueError("`batches` must hold at least one batch. Got none.")
    trainer = attached_trainer(module)
    statistics = estimate_batch_norm(module, kept, at=None, step=runner(module), trainer=trainer)
    buffers = dict(module.named_buffers())
    put_back([buffers[name] for name in statistics], list(statistics.values()))


def estimate_batch_norm(
    module: nn.Module,
    batches: list[KeptBatch],
    *,
    at: Params | None,
    step: Callable[[Any, int], Any],
    trainer: Any | None,
) -> dict[str, Tensor]:
    """Return the batch-norm statistics of a module on some batches; the module is left alone.

    The running mean and variance of each batch norm become the mean over the batches of the
    batches' mean and unbiased variance. No dropout; one forward pass a batch.

    Args:
        module: Whose batch norms.
        batches: What to estimate on.
        at: Weights to estimate at; the live ones if None.
        step: What runs the module on a batch.
        trainer: Whose precision to run in.

    Returns:
        The statistics by buffer name, `<layer>.running_mean` and `<layer>.running_var`.
    """
    norms = batch_norms(module)
    with Isolation(module, trainer=trainer, mode="eval", at=at) as isolation:
        ready = [prepared(module, batch, trainer) for batch in batches]
        device = next(iter(isolation.params.values())).device

        def estimate() -> None:
            with estimating(list(norms.values())), precision_context(trainer):
                for index, batch in Batches(ready, device):
                    step(clone_batch(batch), index)

        try:
            with torch.no_grad():
                estimate()
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:  # the step takes gradients itself
            isolation.learn(Path(), 0.0)
            isolation.move(Path(), 0.0)
            with torch.enable_grad():
                estimate()
        statistics = {
            f"{name}.{buffer}".lstrip("."): getattr(norm, buffer).clone()
            for name, norm in norms.items()
            for buffer in ("running_mean", "running_var")
        }
        isolation.learn(Path(), 0.0)
    return statistics


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch norms of a module that keep running statistics, by name."""
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, _BatchNorm) and child.running_mean is not None
    }


@contextmanager
def estimating(norms: list[_BatchNorm]) -> Iterator[None]:
    """Let batch norms average the statistics of the batches that pass, each with equal weight."""
    before = [(norm, norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.training = True
    try:
        yield
    finally:
        for norm, momentum, training in before:
            norm.momentum = momentum
            norm.training = training


def runner(module: nn.Module) -> Callable[[Any, int], Any]:
    """Return what runs a module on a batch: its training step, or else its forward pass."""
    try:
        return user_step(module)
    except ConfigurationError:
        return lambda batch, index: module(_inputs(batch))


def _inputs(batch: Any) -> Any:
    return batch[0] if isinstance(batch, (list, tuple)) else batch
