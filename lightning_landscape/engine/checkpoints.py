"""Contexts in which somebody else's work goes on as if no probe were running."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_landscape.undo import Undo


@contextmanager
def compiling_nothing() -> Iterator[None]:
    """Run what training has compiled, where it fits, and all else as it is written.

    One graph more can change training: it may take the place of another, and there is a limit to
    their number, beyond which nothing compiled is run any more.
    """
    with torch.compiler.set_stance("eager_on_recompile"):
        yield


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
