"""Open a module and some batches as an objective: the loss as a function of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_landscape._lightning import (
    ConfigurationError,
    as_configuration,
    attached_trainer,
    has_transfer_hooks,
    rank_zero_warn,
)
from lightning_landscape.engine.batches import KeptBatch, clone_batch, prepared
from lightning_landscape.engine.isolation import Mode, isolated
from lightning_landscape.engine.lockstep import Lockstep
from lightning_landscape.engine.objective import ModuleObjective
from lightning_landscape.engine.steps import LossFn, loss_step
from lightning_landscape.engine.weights import Path
from lightning_landscape.params import Params, trainable
from lightning_landscape.sharding import can_recover, sharded_modules

__all__ = ["probing"]

Verify = Literal["first", "always"]


@contextmanager
def probing(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    at: Params | None = None,
    trainer: Any | None = None,
    loss_fn: LossFn | None = None,
    mode: Mode = "train",
    seed: int = 0,
    verify: Verify = "first",
) -> Iterator[ModuleObjective]:
    """Open a module as an objective. Its weights move inside; afterwards nothing has changed.

    "Nothing" is meant bit for bit: weights, buffers, gradients, attributes, train/eval flags,
    generators, the log, the global random streams. All is restored also when an evaluation raises.

    An evaluation is one pass over all the batches (two with `mode="recalibrated"`). Each starts
    from the same state and the same random numbers, so the same weights always give the same bits.
    At most four further evaluations find out what an evaluation writes to: two before the first
    losses, one or two before the first gradient.

    Args:
        module: A LightningModule, or any module when `loss_fn` is given.
        batches: Batches as a dataloader yields them. They are copied, and pass the module's batch
            transfer hooks once.
        at: The weights at `alpha = 0`, such as an average; the module's own by default. Parameters
            that it does not name stay as they are.
        trainer: The steps run in its precision, and its loggers get nothing; by default the trainer
            that the module is attached to.
        loss_fn: `loss_fn(module, batch)` returns the loss, or a dict with a `"loss"`. It replaces
            `training_step`. Manual optimisation and `dataloader_iter` need it.
        mode: `"train"`, what the optimizer sees: batch statistics, dropout with one fixed mask;
            `"eval"`: running statistics, no dropout; `"recalibrated"`: no dropout, batch-norm
            statistics averaged over all the batches anew at every point.
        seed: The seed of every evaluation's random numbers.
        verify: `"first"` compares all that the module holds after the first evaluations, and
            restores what these wrote after each of the others. `"always"` compares after every
            evaluation: it is slow, for debugging. If the losses then differ, the module writes at
            some weights what it does not write at the first. `"always"` also warns of everything
            that a probe does not restore.

    Yields:
        The objective.

    Raises:
        ConfigurationError: If no step of the module returns a loss, `batches` is empty, `at` does
            not fit the module, or `mode` or `verify` is unknown.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = net.weight.data.fill_(1.0)
        >>> square = lambda module, x: module(x).square().mean()
        >>> with probing(net, [torch.ones(4, 1)], loss_fn=square) as objective:
        ...     objective.losses({"weight": torch.ones(1, 1)}, 2.0)
        tensor([9.], dtype=torch.float64)
        >>> net.weight.item()
        1.0
    """
    if verify not in get_args(Verify):
        raise ConfigurationError(
            f"`verify` must be one of {list(get_args(Verify))}. Got {verify!r}."
        )
    trainer = attached_trainer(module) if trainer is None else trainer
    with torch.inference_mode(False):
        kept = [KeptBatch(clone_batch(batch), i, raw=True) for i, batch in enumerate(batches)]
    with opened(
        module, kept, at=at, trainer=trainer, loss_fn=loss_fn, mode=mode, seed=seed
    ) as objective:
        objective.verifies = verify == "always"
        if objective.verifies:
            _warn_of_outside(module, objective.outside)
        yield objective


@contextmanager
def opened(
    module: nn.Module,
    batches: list[KeptBatch],
    *,
    at: Params | None = None,
    trainer: Any | None,
    loss_fn: LossFn | None,
    mode: Mode,
    seed: int,
    lockstep: Lockstep | None = None,
) -> Iterator[ModuleObjective]:
    """Open a module as `probing` does, on batches that are copies already.

    With a `lockstep` all ranks open it together: an exception on one is raised on all.
    """
    if mode not in get_args(Mode):
        raise ConfigurationError(f"`mode` must be one of {list(get_args(Mode))}. Got {mode!r}.")
    if not batches:
        raise ConfigurationError("`batches` must hold at least one batch. Got none.")
    _check_weights(module, at or {})
    step = loss_step(module, loss_fn, trainer=trainer)
    with ExitStack() as stack:

        def open_here() -> ModuleObjective:
            isolation = stack.enter_context(
                isolated(module, trainer=trainer, mode=mode, at=at, seed=seed)
            )
            ready = batches
            if any(batch.raw for batch in batches):
                ready = [prepared(module, batch, trainer) for batch in batches]
                if has_transfer_hooks(module):  # the hooks may have written to the module
                    isolation.record(Path(), 0.0)
            isolation.include("batch", [batch.data for batch in ready])
            return ModuleObjective(
                module, isolation, step, ready, mode=mode, trainer=trainer, lockstep=lockstep
            )

        objective = open_here() if lockstep is None else lockstep.do(open_here)
        yield objective
        objective.close()


def _warn_of_outside(module: nn.Module, outside: dict[str, str]) -> None:
    if outside:
        shown = "; ".join(f"{name}: {reason}" for name, reason in outside.items())
        rank_zero_warn(
            f"A probe of {type(module).__name__} does not restore {len(outside)} things that the "
            f"module holds. What a step writes to them stays. {shown}"
        )


def _check_weights(module: nn.Module, at: Params) -> None:
    known = dict(module.named_parameters())
    if not any(tensor.requires_grad for tensor in known.values()):
        with as_configuration():
            trainable(module)
    absent = [name for name, tensor in known.items() if is_lazy(tensor) or tensor.is_meta]
    if absent:
        raise ConfigurationError(
            "`module` must hold its weights: run it once if it has lazy layers, and move it off "
            f"the meta device with to_empty(). Got no values for {absent[:3]}."
        )
    if sharded_modules(module) and not can_recover():
        raise ConfigurationError(
            "`module` must not be sharded by `fully_shard` here: this torch cannot restore it "
            "after a pass that failed. Use torch 2.13 or newer."
        )
    unknown = [name for name in at if name not in known]
    if unknown:
        raise ConfigurationError(
            "`at` must name parameters of the module, as `named_parameters()` spells them. "
            f"Got {unknown[:3]}; known are {list(known)[:5]}."
        )
    for name, tensor in at.items():
        if tensor.shape != known[name].shape:
            raise ConfigurationError(
                f"`at` must have the shapes of the parameters. Got {tuple(tensor.shape)} for "
                f"{name!r}, which has {tuple(known[name].shape)}."
            )
