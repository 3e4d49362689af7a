"""Contexts in which somebody else's work goes on as if no probe were running."""

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
    """Run what training has compiled, where it fits, and all else as it is written.

    One graph more can change training: it may take the place of another, and there is a limit to
    their number, beyond which nothing compiled is run any more.
    """
    with torch.compiler.set_stance("eager_on_recompile"):
        yield


@contextmanager
def stepping_aside(
    module: nn.Module, trainer: Any | None, tensors: Sequence[Tensor], besides: Sequence[Tensor]
) -> Iterator[None]:
    """Put a module and the random numbers back at the end as they are now, whatever is done inside.

    Args:
        module: The module.
        trainer: Its trainer, if any; what its steps name of that goes back too.
        tensors: What holds its weights on this process.
        besides: Its parameters, whose hooks alone a snapshot looks after.
    """
    sharded = sharded_modules(module)
    reshard(sharded)
    weights = [tensor.detach().clone() for tensor in tensors]
    now = Snapshot(roots_of(module, trainer), besides=list(besides))
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

    A signal handler may save one at any moment.

    Args:
        as_before: A context in which all is as it was before the probe.
        trainer: Whose checkpoints, if any.
        undo: What takes this back.
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
