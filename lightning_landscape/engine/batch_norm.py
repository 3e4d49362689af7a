"""Estimate batch-norm statistics anew: the running ones are wrong for other weights."""

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
    training_flags,
)
from lightning_landscape.engine.batches import Batches, KeptBatch, clone_batch, prepared
from lightning_landscape.engine.guards import MEMORY
from lightning_landscape.engine.isolation import isolated, set_training
from lightning_landscape.engine.snapshot import put_back
from lightning_landscape.engine.steps import user_step
from lightning_landscape.engine.weights import Path
from lightning_landscape.params import Params

__all__ = ["recalibrate_batch_norm"]


def recalibrate_batch_norm(
    module: nn.Module, batches: Iterable[Any], *, loss_fn: Callable[..., Any] | None = None
) -> None:
    """Re-estimate a module's batch-norm statistics on some batches, at its present weights.

    The running mean and variance of each batch norm become the mean over the batches of the
    batches' mean and unbiased variance. Nothing else changes, neither train/eval flags nor random
    streams. Costs one forward pass a batch.

    The module runs as in training, without dropout. Batch norms that are in eval mode during
    training keep their statistics: the module is trained with them.

    Args:
        module: A LightningModule, whose `training_step` is run, or any module, which is called with
            the batch or its first element.
        batches: Batches as a dataloader yields them.
        loss_fn: `loss_fn(module, batch)` runs the module on a batch instead.

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
    step = runner(module) if loss_fn is None else lambda batch, index: loss_fn(module, batch)
    statistics = estimate_batch_norm(module, kept, at=None, step=step, trainer=trainer)
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
    """Return the batch-norm statistics of a module on some batches; the module does not change.

    The module runs as in training, without dropout: its forward pass may be another in eval mode.
    Costs one forward pass a batch.

    Args:
        module: The module.
        batches: The batches.
        at: The weights; the module's own if None.
        step: Runs the module on a batch.
        trainer: Its trainer, if any, for the precision.

    Returns:
        The statistics by buffer name, `<layer>.running_mean` and `<layer>.running_var`. Those of
        batch norms that are in eval mode during training are the present ones.
    """
    norms = batch_norms(module)
    with isolated(module, trainer=trainer, mode="train", at=at) as isolation:
        ready = [prepared(module, batch, trainer) for batch in batches]
        isolation.include("batch", [batch.data for batch in ready])
        device = next(module.parameters(), torch.empty(0)).device

        def estimate() -> None:
            with _as_in_training(module, trainer), _without_dropout(module):
                moving = [norm for norm in norms.values() if norm.training]
                with estimating(moving), precision_context(trainer):
                    for index, batch in Batches(ready, device):
                        step(clone_batch(batch), index)

        try:
            with torch.no_grad():
                estimate()
        except MEMORY:
            raise
        except Exception:  # the step takes gradients itself
            isolation.record(Path(), 0.0)
            isolation.move(Path(), 0.0)
            with torch.enable_grad():
                estimate()
        statistics = {
            f"{name}.{buffer}".lstrip("."): getattr(norm, buffer).clone()
            for name, norm in norms.items()
            for buffer in ("running_mean", "running_var")
        }
        isolation.record(Path(), 0.0)
    return statistics


@contextmanager
def _as_in_training(module: nn.Module, trainer: Any | None) -> Iterator[None]:
    """Set the train/eval flags of training, which a validation has replaced."""
    kept = training_flags(trainer)
    wanted = [(child, kept[name]) for name, child in module.named_modules() if name in kept]
    with _flags(wanted):
        yield


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    """Set the layers to eval mode for which it only turns dropout off."""
    with _flags([(child, False) for child in module.modules() if _only_drops(child)]):
        yield


def _only_drops(child: nn.Module) -> bool:
    """Return whether train and eval mode of a layer differ in dropout alone."""
    if isinstance(child, (nn.RNNBase, nn.MultiheadAttention)):
        return True
    name = type(child).__name__  # by name, for other packages: DropPath, DropBlock, ...
    return ("Drop" in name or name == "StochasticDepth") and not any(True for _ in child.children())


@contextmanager
def _flags(wanted: list[tuple[nn.Module, bool]]) -> Iterator[None]:
    before = [(child, child.training) for child, _ in wanted]
    for child, training in wanted:
        set_training(child, training)
    try:
        yield
    finally:
        for child, training in before:
            set_training(child, training)


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch norms of a module that keep running statistics, by name."""
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, _BatchNorm) and child.running_mean is not None
    }


@contextmanager
def estimating(norms: list[_BatchNorm]) -> Iterator[None]:
    """Make batch norms average the statistics of batches, each with equal weight."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        with _flags([(norm, True) for norm in norms]):
            yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def runner(module: nn.Module) -> Callable[[Any, int], Any]:
    """Return a function that runs a module on a batch: its training step, or its forward pass."""
    try:
        return user_step(module)
    except ConfigurationError:
        return lambda batch, index: module(_inputs(batch))


def _inputs(batch: Any) -> Any:
    return batch[0] if isinstance(batch, (list, tuple)) else batch
