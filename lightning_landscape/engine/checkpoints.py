"""Keep probes out of compiled code, of checkpoints, and of code that runs in the middle of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_landscape.engine.rng import unchanged_rng
from lightning_landscape.engine.roots import roots_of
from lightning_landscape.engine.snapshot import Snapshot, put_back
from lightning_landscape.sharding import reshard, sharded_modules
from lightning_landscape.undo import Undo


@contextmanager
def compiling_nothing() -> Iterator[None]:
    """Run compiled code where it fits, and all else eagerly; compile nothing.

    A new graph can change training: it may replace another. Their number has a limit, beyond which
    torch runs no compiled code.
    """
    with torch.compiler.set_stance("eager_on_recompile"):
        yield


@contextmanager
def state_restored(
    module: nn.Module, trainer: Any | None, tensors: Sequence[Tensor], hooks_only: Sequence[Tensor]
) -> Iterator[None]:
    """Restore a module and the random numbers at the end, as they are now.

    Args:
        module: The module.
        trainer: Its trainer, if any; what the steps name of it is restored too.
        tensors: The tensors with its weights on this process.
        hooks_only: Its parameters, of which a snapshot saves only the hooks.
    """
    sharded = sharded_modules(module)
    reshard(sharded)
    weights = [tensor.detach().clone() for tensor in tensors]
    now = Snapshot(roots_of(module, trainer), hooks_only=list(hooks_only))
    with unchanged_rng():
        try:
            yield
        finally:
            reshard(sharded)
            put_back(tensors, weights)  # first: views of weights are part of the state
            now.restore(now.changed())


def save_unmoved(
    as_before: Callable[[], AbstractContextManager[None]], trainer: Any | None, undo: Undo
) -> None:
    """Make checkpoints written during a probe contain the unmoved weights.

    A signal handler may write one at any moment.

    Args:
        as_before: A context with the state before the probe.
        trainer: The trainer that writes them, if any.
        undo: Gets the actions that undo this.
    """
    if trainer is None:
        return
    strategy, save = trainer.strategy, trainer.save_checkpoint
    weights = strategy.lightning_module_state_dict

    def save_checkpoint(*args: Any, **kwargs: Any) -> None:
        with as_before():
            save(*args, **kwargs)

    def lightning_module_state_dict() -> dict[str, Any]:
        with as_before():
            return {
                key: value.clone() if isinstance(value, Tensor) else value
                for key, value in weights().items()
            }

    undo.keep_items(vars(trainer), "save_checkpoint")
    undo.keep_items(vars(strategy), "lightning_module_state_dict")
    vars(trainer)["save_checkpoint"] = save_checkpoint
    vars(strategy)["lightning_module_state_dict"] = lightning_module_state_dict
