"""The function that returns the loss of a batch: the user's `training_step`, or `loss_fn`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import nn

from lightning_landscape._lightning import (
    ConfigurationError,
    attached_trainer,
    lightning_modules,
    takes_argument,
)

# Returns a Tensor, or a dict[str, Tensor] with "loss". LightningCLI refuses functions whose
# annotations are other or missing, hence `Any`.
LossFn: TypeAlias = Callable[[nn.Module, Any], Any]

Step: TypeAlias = Callable[[Any, int], Any]


def check_loss_fn(loss_fn: LossFn | None) -> LossFn | None:
    """Return a setting that is a function or None.

    Raises:
        ConfigurationError: If it is neither.
    """
    if loss_fn is not None and not callable(loss_fn):
        raise ConfigurationError(
            f"`loss_fn` must be a function of a module and a batch. Got {loss_fn!r}."
        )
    return loss_fn


def loss_step(module: nn.Module, loss_fn: LossFn | None, *, trainer: Any | None = None) -> Step:
    """Return the function from a batch and its index to the loss: `loss_fn` or `training_step`.

    Args:
        module: The module.
        loss_fn: A function of the module and a batch.
        trainer: The `self.trainer` of a step, if the module is not attached to one.

    Raises:
        ConfigurationError: If there is neither, see `user_step`, or if the step reads its trainer
            and has none.
    """
    if loss_fn is not None:
        return lambda batch, index: loss_fn(module, batch)
    step = user_step(module)
    if trainer is not None or attached_trainer(module) is not None:
        return step
    _check_needs_no_trainer(module)
    return lambda batch, index: _without_trainer(module, step, batch, index)


def _check_needs_no_trainer(module: Any) -> None:
    code = getattr(getattr(module.training_step, "__func__", None), "__code__", None)
    if code is not None and "trainer" in code.co_names and "_trainer" not in code.co_names:
        raise ConfigurationError(_NEEDS_TRAINER.format(type(module).__name__))


def _without_trainer(module: Any, step: Step, batch: Any, index: int) -> Any:
    try:
        return step(batch, index)
    except RuntimeError as error:
        if "is not attached to a `Trainer`" in str(error):
            raise ConfigurationError(_NEEDS_TRAINER.format(type(module).__name__)) from error
        raise


_NEEDS_TRAINER = (
    "`trainer` is needed: the `training_step` of {} reads `self.trainer`, and the module is "
    "attached to none. Pass trainer=Trainer(...), or a `loss_fn` that does not read it."
)


def user_step(module: nn.Module) -> Callable[[Any, int], Any]:
    """Return `training_step` as a function of the batch and its index.

    Raises:
        ConfigurationError: If it cannot be called for the loss of a batch.
    """
    step = getattr(module, "training_step", None)
    if step is None or module not in lightning_modules(module):
        raise ConfigurationError(_NEEDS_LOSS_FN.format(f"{type(module).__name__} has none"))
    if not module.automatic_optimization:
        raise ConfigurationError(
            _NEEDS_LOSS_FN.format(
                f"{type(module).__name__} optimises manually, so that calling it would step the "
                "optimizers"
            )
        )
    if takes_argument(step, "dataloader_iter", explicit=True):
        raise ConfigurationError(
            _NEEDS_LOSS_FN.format(f"{type(module).__name__}'s takes a `dataloader_iter`")
        )
    # the eager step: a compiled one would be compiled once more for a batch of another shape
    context = getattr(module, "_compiler_ctx", None) or {}
    step = context.get("original_training_step", step)
    if takes_argument(step, "batch_idx", min_args=2):
        return step
    return lambda batch, index: step(batch)


_NEEDS_LOSS_FN = (
    "`loss_fn` is needed where a `training_step(batch, batch_idx)` cannot be called for its loss: "
    "{}. Pass loss_fn=function with\n"
    "    def function(module, batch):\n"
    "        return ...  # what `training_step` minimises on the batch: a tensor with one element"
)
